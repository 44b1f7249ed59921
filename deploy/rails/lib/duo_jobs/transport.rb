# frozen_string_literal: true

require "json"
require "net/http"
require "openssl"
require "time"
require "uri"

module DuoJobs
  # One request to the gateway and its answer, or the error that says what to do. Repeats nothing.
  class Transport
    # What a connection can come to.
    BROKEN = [
      IOError, SystemCallError, SocketError, Timeout::Error, OpenSSL::SSL::SSLError, Net::HTTPBadResponse, Net::ProtocolError
    ].freeze
    # The same, but before anything was sent.
    NEVER_SENT = [Net::OpenTimeout, Errno::ECONNREFUSED, Errno::EHOSTUNREACH, Errno::ENETUNREACH, SocketError].freeze

    # A request that certainly did not arrive.
    class NotReached < ConnectionFailed; end

    # `token`: a text, or what gives one when called (GitLab's tokens live for a short time). `headers` likewise a Hash.
    def initialize(url:, token: nil, headers: {}, open_timeout: 5, timeout: 30, ca_file: nil)
      @base = URI(url.to_s.chomp("/"))
      raise ArgumentError, "the gateway's url begins with http:// or https://, not #{url.inspect}" unless @base.is_a?(URI::HTTP)

      @token = token
      @headers = headers
      @open_timeout = open_timeout
      @timeout = timeout
      @ca_file = ca_file
    end

    # The parsed answer and its headers.
    def call(method, path, body: nil, headers: {}, timeout: @timeout)
      request = request(method, path, headers)
      if body
        request.body = JSON.generate(body)
        request["Content-Type"] = "application/json"
      end
      response = guarded { connection(timeout).start { |http| http.request(request) } }
      [answer(response), response]
    end

    # Gives the pieces of a stream as they come, each with what sets the longest wait for the next one.
    def stream(path, headers:, timeout:)
      request = request(Net::HTTP::Get, path, headers.merge("Accept" => "text/event-stream"))
      guarded do
        connection(timeout).start do |http|
          http.request(request) do |response|
            refuse(response) unless response.is_a?(Net::HTTPOK) && response.content_type == "text/event-stream"
            response.read_body { |piece| yield piece, ->(seconds) { http.read_timeout = seconds } }
          end
        end
      end
    end

    private

    def request(method, path, headers)
      request = method.new(@base.path + path)
      request["Accept"] = "application/json"
      request["User-Agent"] = "duo_jobs/#{VERSION} ruby/#{RUBY_VERSION}"
      # The answer as it is: a compressed stream of events would wait for its block to be full.
      request["Accept-Encoding"] = "identity"
      token = now(@token)
      request["Authorization"] = "Bearer #{token}" if token
      now(@headers).merge(headers).each { |name, value| request[name.to_s] = value.to_s }
      request
    end

    def now(value) = value.respond_to?(:call) ? value.call : value

    def connection(timeout)
      http = Net::HTTP.new(@base.host, @base.port)
      http.use_ssl = @base.scheme == "https"
      http.ca_file = @ca_file if @ca_file
      http.open_timeout = [@open_timeout, timeout].min
      http.ssl_timeout = http.open_timeout
      http.read_timeout = timeout
      http.write_timeout = timeout
      # Net::HTTP would repeat some requests by itself; here the client decides.
      http.max_retries = 0
      http
    end

    def guarded
      yield
    rescue *NEVER_SENT => error
      raise NotReached, "the gateway at #{place} was not reached: #{error.message} (#{error.class}); try again"
    rescue *BROKEN => error
      raise ConnectionFailed, "the connection to the gateway at #{place} broke: #{error.message} (#{error.class}); " \
                              "try again, a submission with the same key"
    end

    def place = "#{@base.scheme}://#{@base.host}:#{@base.port}"

    def answer(response)
      body = parsed(response)
      response.is_a?(Net::HTTPSuccess) && body ? body : refuse(response)
    end

    # What the gateway answers is an object, always.
    def parsed(response)
      body = JSON.parse(response.body.to_s.dup.force_encoding(Encoding::UTF_8))
      body if body.is_a?(Hash)
    rescue JSON::ParserError
      nil
    end

    def refuse(response)
      body = parsed(response) || {}
      status = response.code.to_i
      code = body["error"].is_a?(String) ? body["error"] : nil
      kind = kind(status, code)
      said = body["message"] || body["detail"] || response.message
      problems = Array(body["problems"]).map { |one| "#{one["field"]}: #{one["problem"]}" }
      text = ["#{status} #{code}".strip, said, *problems].compact.join("; ")
      error = kind <= TransientError ? kind.new(text, retry_after: retry_after(response)) : kind.new(text)
      error.instance_variable_set(:@status, status)
      error.instance_variable_set(:@code, code)
      error.instance_variable_set(:@body, body)
      raise error
    end

    def kind(status, code)
      case status
      when 400, 413, 415, 422 then code == "idempotency_key_reused" ? KeyReused : InvalidRequest
      when 401 then Unauthorized
      when 403 then Forbidden
      when 404 then NotFound
      when 409 then KeyInUse
      when 410 then code == "result_expired" ? ResultGone : Gone
      when 429 then TooManyJobs
      when 408, 500..599 then Unavailable
      else UnexpectedAnswer
      end
    end

    # Seconds, or a moment.
    def retry_after(response)
      value = response["Retry-After"] or return
      return value.to_i if value.match?(/\A\d+\z/)

      [(Time.httpdate(value) - Time.now).ceil, 0].max
    rescue ArgumentError
      nil
    end
  end
end
