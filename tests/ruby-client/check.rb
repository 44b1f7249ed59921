# frozen_string_literal: true

# Uses the gem, and its examples with real ActiveJob and Sidekiq, against a running broker, as an application does; fails loudly where
# something is amiss.

require "active_job"
require "json"
require "net/http"
require "stringio"

GEM = File.expand_path("../../deploy/rails", __dir__)
$LOAD_PATH.unshift(File.join(GEM, "lib"))
require "duo_jobs"
require "sidekiq"
require "sidekiq/testing"
load File.join(GEM, "examples/active_job.rb")
load File.join(GEM, "examples/sidekiq.rb")

URL = ENV.fetch("DUO_URL")
SIM = ENV.fetch("SIM_URL")
CLIENT = DuoJobs::Client.new(url: URL, token: ENV.fetch("DUO_CLIENT_TOKEN"))
TIMEOUT = 30
WORDS = 60

# Notes what is put into the queue, and runs nothing: the checks say when.
class NotingAdapter
  attr_reader :noted

  def initialize = @noted = []
  def enqueue(job) = @noted << [job, nil]
  def enqueue_at(job, at) = @noted << [job, at]
end

def check(what, given, expected = true)
  raise "#{what}: #{given.inspect} instead of #{expected.inspect}" unless expected === given || expected == given
end

def expect(kind)
  yield
rescue kind => error
  error
else
  raise "expected #{kind}"
end

def ask(question, key: nil, **more)
  CLIENT.submit(feature: "openai_chat", model: "mistral", input: question, max_output_tokens: WORDS, idempotency_key: key, **more)
end

def jobs_of_mine = CLIENT.list(limit: 100).map(&:id)

def set_sim(change)
  uri = URI("#{SIM}/control")
  request = Net::HTTP::Patch.new(uri, "content-type" => "application/json")
  request.body = JSON.generate(change)
  answer = Net::HTTP.start(uri.host, uri.port) { |http| http.request(request) }
  check("the model server", answer.code, "200")
end

def one_key_is_one_job
  first = ask("once", key: %(a "key" of mine), metadata: { issue: "42" })
  again = ask("once", key: %(a "key" of mine), metadata: { issue: "42" })
  check("its id", again.id, first.id)
  check("replayed", [first.replayed?, again.replayed?], [false, true])
  check("the list", jobs_of_mine, [first.id])
  expect(DuoJobs::KeyReused) { ask("something else", key: %(a "key" of mine)) }
  done = CLIENT.wait(first.id, timeout: TIMEOUT)
  check("its state", done.state, "succeeded")
  check("its words", done.result!.dig("usage", "output_tokens"), WORDS)
  check("its metadata", done["metadata"], { "issue" => "42" })
end

def an_answer_is_followed_and_taken_up
  id = ask("tell", deadline: Time.now + 600).id
  said = +""
  ended = CLIENT.each_event(id, timeout: TIMEOUT) { |event| said << event.text if event.type == "text" }
  check("its end", ended.state, "succeeded")
  check("its text", said, ended.text)
  # One who leaves in the middle and comes again.
  id = ask("tell on").id
  last = CLIENT.each_event(id, timeout: TIMEOUT).find { |event| event.type == "text" }
  said = last.text.dup
  ended = CLIENT.each_event(id, after: last.id, timeout: TIMEOUT) { |event| said << event.text if event.type == "text" }
  check("in pieces", last.text.bytesize < ended.text.bytesize)
  check("its text in two parts", said, ended.text)
end

def one_is_cancelled
  id = ask("never mind", deadline: 600).id
  check("cancelled", CLIENT.cancel(id).state, "cancelled")
  check("twice", CLIENT.cancel(id).state, "cancelled")
  failed = expect(DuoJobs::JobFailed) { CLIENT.wait(id, timeout: TIMEOUT).result! }
  check("why", failed.job.error["code"], "cancelled")
  check("its events", CLIENT.each_event(id, timeout: TIMEOUT).to_a.last.job.state, "cancelled")
end

def mistakes_have_names
  wrong = expect(DuoJobs::InvalidRequest) { ask("x", surprise: 1) }
  check("the field", wrong.problems.first["field"], "surprise")
  check("in words", wrong.message, /surprise/)
  expect(DuoJobs::NotFound) { CLIENT.find("no-such-job") }
  # Its first digits are the time at which it was submitted: 1970.
  expect(DuoJobs::Gone) { CLIENT.find("00000000-0000-7000-8000-000000000000") }
  expect(DuoJobs::Unauthorized) { DuoJobs::Client.new(url: URL, token: "nobody").list }
  slow = ask("slow").id
  still = expect(DuoJobs::StillWorking) { CLIENT.wait(slow, timeout: 0) }
  check("how far", %w[queued running].include?(still.job.state))
  CLIENT.wait(slow, timeout: TIMEOUT)
end

def active_job_runs_twice_and_submits_once
  queue = NotingAdapter.new
  ActiveJob::Base.queue_adapter = queue
  ActiveJob::Base.logger = nil
  before = jobs_of_mine
  job = Summaries::SubmitJob.new("from ActiveJob")
  2.times { job.perform_now }
  # Once more as a queue brings it back: from what was stored of it.
  ActiveJob::Base.execute(job.serialize)
  mine = jobs_of_mine - before
  check("jobs of the gateway", mine.size, 1)
  check("what is enqueued", queue.noted.map { |noted, at| [noted.class, noted.arguments, at.nil?] }.uniq,
        [[Summaries::FetchJob, mine, false]])
  another = Summaries::SubmitJob.new("from ActiveJob")
  another.perform_now
  check("another job is another job", (jobs_of_mine - before).size, 2)

  CLIENT.wait(mine.first, timeout: TIMEOUT)
  queue.noted.clear
  check("the webhook's answer", Summaries::WEBHOOK.call(webhook(mine.first)).first, 204)
  check("a forged one's", Summaries::WEBHOOK.call(webhook(mine.first, key: "k" * 32)).first, 400)
  check("what is enqueued", queue.noted.map { |noted, at| [noted.class, noted.arguments, at] }, [[Summaries::FetchJob, mine, nil]])
  2.times { queue.noted.first.first.perform_now }
  check("what is kept", Summaries.kept.map { |kept| [kept.id, kept.succeeded?] }, [[mine.first, true]])
end

def active_job_comes_again_for_what_is_not_over
  queue = NotingAdapter.new
  ActiveJob::Base.queue_adapter = queue
  id = ask("later").id
  Summaries::FetchJob.new(id).perform_now
  check("it comes again", queue.noted.map { |noted, at| [noted.class, noted.arguments, at > Time.now.to_f + 50] },
        [[Summaries::FetchJob, [id], true]])
  CLIENT.wait(id, timeout: TIMEOUT)
end

def active_job_tries_again_when_the_gateway_is_away
  queue = NotingAdapter.new
  ActiveJob::Base.queue_adapter = queue
  away = DuoJobs::Client.new(url: "http://127.0.0.1:1", retry_for: 0)
  mine = Summaries.client
  Summaries.instance_variable_set(:@client, away)
  job = Summaries::SubmitJob.new("the gateway is away")
  job.perform_now
  check("it is tried again under the same id", queue.noted.map { |noted, at| [noted.job_id, at.nil?] }, [[job.job_id, false]])
ensure
  Summaries.instance_variable_set(:@client, mine)
end

def sidekiq_runs_twice_and_submits_once
  before = jobs_of_mine
  jid = Answers::Submit.perform_async("from Sidekiq")
  Answers::Submit.jobs << Answers::Submit.jobs.first.dup
  Answers::Submit.drain
  mine = jobs_of_mine - before
  check("jobs of the gateway for #{jid}", mine.size, 1)
  check("what is enqueued", Answers::Fetch.jobs.map { |job| job["args"] }.uniq, [mine])
  CLIENT.wait(mine.first, timeout: TIMEOUT)
  Answers::Fetch.drain
  check("what is kept", Answers::STORE.transform_values(&:state), { mine.first => "succeeded" })
end

KEY = "0123456789abcdef0123456789abcdef"
ENV["DUO_WEBHOOK_SECRETS"] = "whsec_#{[KEY].pack("m0")}"

# A delivery as a Rack application gets it.
def webhook(id, key: KEY)
  body = JSON.generate("type" => "job.succeeded", "timestamp" => Time.now.utc.iso8601, "data" => { "id" => id })
  at = Time.now.to_i
  signature = [OpenSSL::HMAC.digest("SHA256", key, "msg_1.#{at}.#{body}")].pack("m0")
  {
    "rack.input" => StringIO.new(body), "HTTP_WEBHOOK_ID" => "msg_1", "HTTP_WEBHOOK_TIMESTAMP" => at.to_s,
    "HTTP_WEBHOOK_SIGNATURE" => "v1,#{signature}"
  }
end

set_sim("pace_ms" => 10, "tokens" => WORDS)
%i[
  one_key_is_one_job an_answer_is_followed_and_taken_up one_is_cancelled mistakes_have_names active_job_runs_twice_and_submits_once
  active_job_comes_again_for_what_is_not_over active_job_tries_again_when_the_gateway_is_away sidekiq_runs_twice_and_submits_once
].each do |name|
  send(name)
  puts "#{name}: fine"
end
