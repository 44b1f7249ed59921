# frozen_string_literal: true

# Is told by a running broker that a job ended, over HTTP, through the example's own webhook; fails loudly where something is amiss.
# The broker knows it as `rails`, at WEBHOOK_PORT of localhost.

require "active_job"
require "socket"
require "stringio"
require "timeout"

GEM = File.expand_path("../../deploy/rails", __dir__)
$LOAD_PATH.unshift(File.join(GEM, "lib"))
load File.join(GEM, "examples/active_job.rb")

TIMEOUT = 30

# Notes what is enqueued.
class NotingAdapter
  attr_reader :noted

  def initialize = @noted = Queue.new
  def enqueue(job) = @noted << job
  def enqueue_at(job, _at) = @noted << job
end

# One request as a Rack environment.
def read(socket)
  socket.gets
  env = {}
  while (line = socket.gets.chomp) != ""
    name, value = line.split(": ", 2)
    env["HTTP_#{name.upcase.tr("-", "_")}"] = value
  end
  env.merge("rack.input" => StringIO.new(socket.read(env.fetch("HTTP_CONTENT_LENGTH").to_i)))
end

def serve(server, answered)
  loop do
    socket = server.accept
    status, _, body = Summaries::WEBHOOK.call(read(socket))
    socket.write("HTTP/1.1 #{status} \r\ncontent-length: #{body.sum(&:bytesize)}\r\nconnection: close\r\n\r\n", *body)
    socket.close
    answered << [status, body.join]
  end
end

ActiveJob::Base.queue_adapter = queue = NotingAdapter.new
ActiveJob::Base.logger = nil
answered = Queue.new
server = TCPServer.new("127.0.0.1", ENV.fetch("WEBHOOK_PORT"))
Thread.new { serve(server, answered) }.abort_on_exception = true

def ask(question)
  Summaries.client.submit(
    feature: "openai_chat", model: "mistral", input: question, max_output_tokens: 20, callback: "rails", idempotency_key: question
  )
end

job = ask("tell Rails")
noted = Timeout.timeout(TIMEOUT) { [answered.pop, queue.noted.pop] }
raise "the webhook: #{noted.first}" unless noted.first == [204, ""]
raise "what is enqueued: #{noted.last.arguments}" unless noted.last.is_a?(Summaries::FetchJob) && noted.last.arguments == [job.id]

noted.last.perform_now
kept = Summaries.kept.first
raise "what is kept: #{kept&.state}" unless kept&.id == job.id && kept.succeeded? && !kept.text.empty?

# One whose secret is another refuses it.
ENV["DUO_WEBHOOK_SECRETS"] = "whsec_#{["k" * 32].pack("m0")}"
ask("tell a stranger")
status, why = Timeout.timeout(TIMEOUT) { answered.pop }
raise "a stranger: #{status} #{why}" unless status == 400 && why.include?("signature")

puts "fine"
