# frozen_string_literal: true

# Submits from ActiveJob and leaves; a second job fetches the result. In an application the two classes lie in app/jobs and the
# webhook is a controller. Against a running gateway:
#
#   DUO_URL=http://127.0.0.1:8080 DUO_CLIENT_TOKEN=… ruby -I lib examples/active_job.rb "Why is the sky blue?"

require "active_job"
require "timeout"
require "duo_jobs"

module Summaries
  # Where results go: in an application a table with a unique index on the job's id, so that the same result may come twice.
  STORE = {}
  LOCK = Mutex.new

  # One for the whole application.
  def self.client
    @client ||= DuoJobs::Client.new(url: ENV.fetch("DUO_URL"), token: ENV.fetch("DUO_CLIENT_TOKEN"))
  end

  def self.keep(job) = LOCK.synchronize { STORE[job.id] ||= job }
  def self.kept = LOCK.synchronize { STORE.values }

  # As long as the gateway asks for, else longer and longer.
  WAIT = ->(count) { [count * 15, 600].min }

  class SubmitJob < ActiveJob::Base
    retry_on DuoJobs::TransientError, wait: WAIT, attempts: 20
    # It would be refused again: DuoJobs::PermanentError goes to whoever watches for failed jobs.

    # However often this runs, it is one job of the gateway: `job_id` stays the same when ActiveJob tries again.
    def perform(question)
      job = Summaries.client.submit(
        feature: "openai_chat", model: ENV.fetch("DUO_MODEL", "mistral"), input: question, max_output_tokens: 200,
        idempotency_key: "summary-#{job_id}", metadata: { job_id: job_id }
      )
      # For the case that no webhook comes. FetchJob asks again by itself.
      FetchJob.set(wait: FetchJob.later).perform_later(job.id)
    end
  end

  class FetchJob < ActiveJob::Base
    # Seconds between two looks. A minute is plenty where webhooks come.
    class_attribute :later, default: 60

    retry_on DuoJobs::TransientError, wait: WAIT, attempts: 20

    # By the webhook or by the clock, in either order and more than once. Every job ends, at its deadline if not before, and so does this.
    def perform(id)
      job = Summaries.client.find(id)
      return self.class.set(wait: later).perform_later(id) unless job.over?

      Summaries.keep(job)
    end
  end

  # What a controller does with POST /duo/webhook:
  #   DuoJobs::Webhook.verify(request.raw_post, request.headers, secrets)
  WEBHOOK = lambda do |env|
    event = DuoJobs::Webhook.verify(env["rack.input"].read, env, ENV.fetch("DUO_WEBHOOK_SECRETS").split)
    FetchJob.perform_later(event.job_id) if event.type.start_with?("job.")
    [204, {}, []]
  rescue DuoJobs::WebhookRefused => error
    [400, { "content-type" => "text/plain" }, [error.message]]
  end
end

if $PROGRAM_NAME == __FILE__
  ActiveJob::Base.queue_adapter = :async
  ActiveJob::Base.logger = Logger.new(nil)
  Summaries::FetchJob.later = 0.5
  Summaries::SubmitJob.perform_later(ARGV.fetch(0, "Why is the sky blue?"))
  job = Timeout.timeout(120) { sleep(0.1) until Summaries.kept.any? } || Summaries.kept.first
  puts "#{job.id} #{job.state}", job.text
end
