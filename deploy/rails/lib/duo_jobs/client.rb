# frozen_string_literal: true

module DuoJobs
  # Submits jobs and looks at them. One client serves any number of threads.
  #
  # A call repeats itself only where that is safe, waits as the gateway asks (Retry-After), and gives up when that would take it
  # past `retry_for` seconds; then it raises what it met last.
  class Client
    # First and longest pause between two tries.
    BACKOFF = (0.2..8.0)
    # First and longest pause between two looks of `wait`.
    LOOK = (0.2..10.0)
    # The gateway says something every 15 seconds at least.
    SILENCE = 45
    # A stream that lived for so long is a new one when it breaks, not another failure of the same.
    STEADY = 5

    # `token` may be something to call (GitLab's tokens live for a short time), `headers` likewise: what GitLab sends beside it.
    # `timeout` is the longest silence of the gateway, `open_timeout` the longest wait for a connection, `ca_file` for a gateway with a certificate of one's own.
    def initialize(url:, token: nil, headers: {}, open_timeout: 5, timeout: 30, retry_for: 20, ca_file: nil)
      @timeout = timeout
      @retry_for = retry_for
      @transport = Transport.new(url: url, token: token, headers: headers, open_timeout: open_timeout, timeout: timeout,
                                 ca_file: ca_file)
    end

    # Submits a job and gives it as it was accepted. The fields are those of `POST /v1/jobs`.
    #
    # With a key it is safe to call this as often as one likes: it stays one job for 24 hours. `nil` says that there is none; then
    # a connection that breaks is not tried again, since the job may have been accepted.
    def submit(idempotency_key:, **fields)
      fields[:deadline] = deadline(fields[:deadline]) if fields.key?(:deadline)
      headers = idempotency_key.nil? ? {} : { "Idempotency-Key" => quoted(idempotency_key) }
      trying(safe: !idempotency_key.nil?) do
        body, response = @transport.call(Net::HTTP::Post, "/v1/jobs", body: fields, headers: headers)
        Job.new(body, replayed: response["Idempotency-Replayed"] == "true")
      end
    end

    # The job as it stands.
    def find(id) = look(id)

    # Cancels it; a job that is over stays as it is. Gives the job.
    def cancel(id) = trying(safe: true) { job(Net::HTTP::Delete, id, @timeout) }

    # A page of one's jobs, newest first; all of them by giving `next_cursor` back as `cursor`.
    def list(state: nil, feature: nil, model: nil, limit: nil, cursor: nil)
      asked = { state: state, feature: feature, model: model, limit: limit, cursor: cursor }.compact
      path = asked.empty? ? "/v1/jobs" : "/v1/jobs?#{URI.encode_www_form(asked)}"
      trying(safe: true) do
        body, = @transport.call(Net::HTTP::Get, path)
        Page.new(body.fetch("jobs").map { |fields| Job.new(fields) }, body["next_cursor"])
      end
    end

    # Looks until the job is over and gives it, however it ended. Raises StillWorking when it is not over in `timeout` seconds.
    def wait(id, timeout:)
      give_up = clock + timeout
      pause = LOOK.begin
      loop do
        # The last look gets a second, though the time be over.
        left = [give_up - clock, 1].max
        job = look(id, retry_for: left, timeout: [left, @timeout].min)
        return job if job.over?

        left = give_up - clock
        raise StillWorking.new("job #{id} is #{job.state} after #{timeout} s; look again later", job: job) if left <= 0

        rest([pause * rand(0.8..1.2), left].min)
        pause = [pause * 1.5, LOOK.end].min
      end
    end

    # Follows a job: gives each Event, and at last returns the job with its result. `after` is the id of the last event that one
    # has. A connection that breaks is made anew, and the text goes on with the very next byte. Raises StillWorking when the end
    # has not come in `timeout` seconds.
    def each_event(id, after: nil, timeout: 300, &block)
      return enum_for(:each_event, id, after: after, timeout: timeout) unless block

      following = Following.new(after, clock + timeout)
      loop do
        ended = follow(id, following, block)
        return ended.job if ended
      rescue TransientError, EventParser::Broken => error
        again(id, following, error)
      else
        again(id, following, ConnectionFailed.new("the events of job #{id} were broken off"))
      end
    rescue Carried => carried
      raise carried.cause, cause: carried.cause.cause
    end

    private

    # How far one has come, until when, and what went wrong since it last went well.
    Following = Struct.new(:after, :give_up, :job, :began, :trouble, :tries)
    # Carries what the caller's block raised past our own rescues: it is no trouble of the connection.
    class Carried < Exception; end # rubocop:disable Lint/InheritException
    private_constant :Following, :Carried

    # One connection of `each_event`: gives the last event when that was the end.
    def follow(id, following, block)
      parser = EventParser.new
      following.began = clock
      headers = following.after ? { "Last-Event-ID" => following.after } : {}
      @transport.stream("#{path(id)}/events", headers: headers, timeout: silence(following)) do |piece, set_timeout|
        parser.feed(piece) do |event|
          note(following, event)
          carried { block.call(event) }
          return event if event.end?
        end
        return if clock >= following.give_up

        set_timeout.call(silence(following))
      end
      nil
    end

    def note(following, event)
      following.job = event.job || following.job
      return unless event.id

      following.after = event.id
      following.trouble = nil
    end

    def carried
      yield
    rescue StandardError
      raise Carried
    end

    def silence(following) = (following.give_up - clock).clamp(0.1, SILENCE)

    # Waits before the next connection, or gives up.
    def again(id, following, error)
      following.trouble = nil if clock - following.began >= STEADY
      following.tries = 0 unless following.trouble
      following.trouble ||= clock
      if clock >= following.give_up
        raise StillWorking.new("job #{id} is not over; go on from the last event later", job: following.job,
                                                                                        last_event_id: following.after)
      end
      pause = pause_after(error, following.tries)
      following.tries += 1
      raise broken(error) if clock + pause > following.trouble + @retry_for

      rest([pause, following.give_up - clock].min)
    end

    def broken(error)
      error.is_a?(Error) ? error : UnexpectedAnswer.new("what came is no stream of events: #{error.message}")
    end

    def look(id, retry_for: @retry_for, timeout: @timeout)
      trying(safe: true, retry_for: retry_for) { job(Net::HTTP::Get, id, timeout) }
    end

    def job(method, id, timeout) = Job.new(@transport.call(method, path(id), timeout: timeout).first)

    # Tries until it goes well, will not, or may not be tried again.
    def trying(safe:, retry_for: @retry_for)
      give_up = clock + retry_for
      tries = 0
      begin
        yield
      rescue TransientError => error
        pause = pause_after(error, tries)
        raise unless (safe || harmless?(error)) && clock + pause <= give_up

        rest(pause)
        tries += 1
        retry
      end
    end

    # Nothing was stored, for certain.
    def harmless?(error) = error.is_a?(Transport::NotReached) || error.is_a?(TooManyJobs)

    def pause_after(error, tries)
      said = error.retry_after if error.is_a?(TransientError)
      said || [BACKOFF.begin * (2**tries), BACKOFF.end].min * rand(0.5..1.0)
    end

    def path(id)
      raise ArgumentError, "a job's id is needed" if id.to_s.empty?

      "/v1/jobs/#{URI.encode_www_form_component(id.to_s)}"
    end

    # As a structured field's string, which has any visible character.
    def quoted(key) = %("#{key.to_s.gsub(/["\\]/) { |sign| "\\#{sign}" }}")

    # A moment, a number of seconds, or one of ActiveSupport's durations.
    def deadline(value)
      case value
      when String, nil then value
      else value.respond_to?(:to_time) ? value.to_time.utc.iso8601 : value.to_i
      end
    end

    def clock = Process.clock_gettime(Process::CLOCK_MONOTONIC)

    def rest(seconds) = sleep(seconds)
  end
end
