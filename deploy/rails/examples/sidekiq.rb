# frozen_string_literal: true

# The same with Sidekiq alone. As a worker (`sidekiq -r ./examples/sidekiq.rb`, with Redis) it submits what is put into its queue;
# by itself it shows one job, with Sidekiq's queue in memory instead of Redis:
#
#   DUO_URL=http://127.0.0.1:8080 DUO_CLIENT_TOKEN=… ruby -I lib examples/sidekiq.rb "Why is the sky blue?"

require "sidekiq"
require "duo_jobs"

module Answers
  # In an application a table with a unique index on the job's id.
  STORE = {}

  def self.client
    @client ||= DuoJobs::Client.new(url: ENV.fetch("DUO_URL"), token: ENV.fetch("DUO_CLIENT_TOKEN"))
  end

  class Submit
    include Sidekiq::Worker
    sidekiq_options retry: 20
    # As the gateway asks; nil leaves it to Sidekiq.
    sidekiq_retry_in { |_count, error| error.retry_after if error.is_a?(DuoJobs::TransientError) }

    # `jid` stays the same when Sidekiq tries again, or runs it twice because a process died.
    def perform(question)
      job = Answers.client.submit(
        feature: "openai_chat", model: ENV.fetch("DUO_MODEL", "mistral"), input: question, max_output_tokens: 200,
        idempotency_key: "answer-#{jid}"
      )
      Fetch.perform_in(Fetch::LATER, job.id)
    end
  end

  # By the webhook (`Fetch.perform_async(event.job_id)`, see active_job.rb) or by the clock.
  class Fetch
    include Sidekiq::Worker
    LATER = 60
    sidekiq_options retry: 20

    def perform(id)
      job = Answers.client.find(id)
      return self.class.perform_in(LATER, id) unless job.over?

      STORE[job.id] ||= job
    end
  end
end

if $PROGRAM_NAME == __FILE__
  require "sidekiq/testing"
  Answers::Submit.perform_async(ARGV.fetch(0, "Why is the sky blue?"))
  Answers::Submit.drain
  # The queue in memory knows no clock.
  Answers.client.wait(Answers::Fetch.jobs.first["args"].first, timeout: 120)
  Answers::Fetch.drain
  job = Answers::STORE.values.first
  puts "#{job.id} #{job.state}", job.text
end
