# frozen_string_literal: true

module DuoJobs
  # Everything that this library raises, but ArgumentError for a mistake in the caller's own code.
  class Error < StandardError; end

  # It may be well in a moment. Try the same again later: a submission with the same key.
  class TransientError < Error
    # Seconds after which the gateway wants to be asked again, if it said so.
    attr_reader :retry_after

    def initialize(message = nil, retry_after: nil)
      super(message)
      @retry_after = retry_after
    end
  end

  # It will not be well by itself. Do not repeat it.
  class PermanentError < Error; end

  # What both kinds know of an answer.
  module Answered
    # The HTTP status, the gateway's word for what is wrong, and the whole answer.
    attr_reader :status, :code, :body
  end

  # The gateway was not reached, or said nothing in time. Whether it took a submission is not known: submit again with the same key.
  class ConnectionFailed < TransientError; end

  # The gateway, its database or something before it does not work just now.
  class Unavailable < TransientError
    include Answered
  end

  # As many jobs wait as may. Come again after `retry_after`; do not wait for it inside of a worker.
  class TooManyJobs < TransientError
    include Answered
  end

  # The same key is on its way into the database at this moment. Submit again: the answer will be that job.
  class KeyInUse < TransientError
    include Answered
  end

  # A field is missing, unknown or wrong. Change the code that fills it; `problems` names the fields.
  class InvalidRequest < PermanentError
    include Answered

    # A list of `{"field" => …, "problem" => …}`.
    def problems
      body.fetch("problems", [])
    end
  end

  # The key belongs to another job with another body. Make keys of what makes a job what it is.
  class KeyReused < InvalidRequest; end

  # The token is missing, wrong or too old. Renew it.
  class Unauthorized < PermanentError
    include Answered
  end

  # The token may not use the feature, or the feature is inactive. An administrator of the gateway can change that.
  class Forbidden < PermanentError
    include Answered
  end

  # There is no such job, or it is somebody else's.
  class NotFound < PermanentError
    include Answered
  end

  # The job was there, but is past keeping. Submit it anew, with another key.
  class Gone < PermanentError
    include Answered
  end

  # The job succeeded, but its result is past keeping; `job` is the rest of it.
  class ResultGone < Gone
    def job
      Job.new(body.fetch("job"))
    end
  end

  # An answer that no gateway gives: look at the address and at what stands before the gateway.
  class UnexpectedAnswer < PermanentError
    include Answered
  end

  # The job was not over in time. It goes on: look at it later, do not submit it again.
  class StillWorking < Error
    # The job as it was seen last, if it was, and the id of the last event, to go on from.
    attr_reader :job, :last_event_id

    def initialize(message, job: nil, last_event_id: nil)
      super(message)
      @job = job
      @last_event_id = last_event_id
    end
  end

  # A job ended without a result; `job` says how. `dead` and `expired` are worth another submission with another key.
  class JobFailed < Error
    attr_reader :job

    def initialize(job)
      error = job.error || {}
      super("job #{job.id} is #{job.state}: #{[error["code"], error["message"]].compact.join(": ")}")
      @job = job
    end
  end

  # A webhook that is not to be believed. Answer 400 and do nothing else.
  class WebhookRefused < Error
    # `:missing_header`, `:timestamp`, `:signature` or `:malformed`.
    attr_reader :reason

    def initialize(reason, message)
      super(message)
      @reason = reason
    end
  end
end
