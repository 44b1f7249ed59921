# frozen_string_literal: true

require "time"

module DuoJobs
  # A job as the gateway showed it. Every field is there by its name: `job["metadata"]`.
  class Job
    FINAL = %w[succeeded failed cancelled expired dead].freeze

    attr_reader :to_h

    # `replayed`: the submission had been made before, with the same key.
    def initialize(fields, replayed: false)
      @to_h = fields.freeze
      @replayed = replayed
    end

    def [](name)
      @to_h[name.to_s]
    end

    def id = @to_h.fetch("id")
    def state = @to_h.fetch("state")
    def result = @to_h["result"]
    def error = @to_h["error"]

    # The answer, if it is one of text.
    def text = result && result["text"]

    def replayed? = @replayed

    # Nothing happens to it any more.
    def over? = FINAL.include?(state)

    def succeeded? = state == "succeeded"

    # Seconds until the gateway thinks that it begins; nil where it cannot say.
    def estimated_wait = @to_h["estimated_wait_seconds"]

    # The result of a success.
    def result!
      raise JobFailed, self if over? && !succeeded?
      raise StillWorking.new("job #{id} is #{state}; look again later", job: self) unless over?

      result
    end

    def inspect = "#<#{self.class} #{id} #{state}>"
  end

  # Some of one's jobs, newest first.
  class Page
    include Enumerable

    # What `Client#list` takes as `cursor` for the jobs after these; nil on the last page.
    attr_reader :jobs, :next_cursor

    def initialize(jobs, next_cursor)
      @jobs = jobs
      @next_cursor = next_cursor
    end

    def each(&block) = @jobs.each(&block)
  end
end
