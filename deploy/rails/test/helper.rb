# frozen_string_literal: true

require "minitest/autorun"
require "socket"
require "timeout"
require "duo_jobs"

# A client that notes its pauses and takes none. They count as if they had been.
class QuickClient < DuoJobs::Client
  attr_reader :rests

  def initialize(**options)
    super
    @rests = []
  end

  private

  def clock = super + @rests.sum

  def rest(seconds) = @rests << seconds
end

# A gateway on 127.0.0.1 that answers each connection with the next of its answers and notes what it was asked.
class FakeGateway
  Request = Struct.new(:method, :path, :headers, :body)

  # Longest that a test waits for it.
  PATIENCE = 10

  attr_reader :requests

  # An answer: a text to send before the connection is closed, `:reset` for none, or what writes to the socket when called.
  def initialize(*answers)
    @answers = answers
    @requests = []
    @server = TCPServer.new("127.0.0.1", 0)
    @thread = Thread.new { serve }
    @thread.report_on_exception = false
  end

  def url = "http://127.0.0.1:#{@server.addr[1]}"

  # All answers were wanted, and nothing more.
  def finish
    Timeout.timeout(PATIENCE) { @thread.value }
  ensure
    @thread.kill
    @server.close
  end

  def self.json(status, fields, headers = {})
    body = JSON.generate(fields)
    head = headers.map { |name, value| "#{name}: #{value}\r\n" }.join
    "HTTP/1.1 #{status} Word\r\nContent-Type: application/json\r\nContent-Length: #{body.bytesize}\r\n#{head}\r\n#{body}"
  end

  def self.events(text, chunked: true)
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    return "#{head}Connection: close\r\n\r\n#{text}" unless chunked

    # In pieces of three bytes: characters and lines are cut wherever that happens to be.
    pieces = text.b.scan(/.{1,3}/mn).map { |piece| "#{piece.bytesize.to_s(16)}\r\n#{piece}\r\n" }
    "#{head}Transfer-Encoding: chunked\r\n\r\n".b + pieces.join
  end

  private

  def serve
    @answers.each do |answer|
      socket = @server.accept
      note(socket)
      case answer
      when :reset then socket.setsockopt(Socket::SOL_SOCKET, Socket::SO_LINGER, [1, 0].pack("ii"))
      when String then socket.write(answer)
      else answer.call(socket)
      end
    ensure
      socket&.close
    end
  end

  def note(socket)
    method, path = socket.gets.split
    headers = {}
    while (line = socket.gets.chomp) != ""
      name, value = line.split(": ", 2)
      headers[name.downcase] = value
    end
    length = headers["content-length"].to_i
    @requests << Request.new(method, path, headers, length.positive? ? socket.read(length) : nil)
  end
end
