# frozen_string_literal: true

# Jobs of a duo-broker, from Ruby: submit and leave, look later, be told by a webhook.
module DuoJobs
end

require_relative "duo_jobs/version"
require_relative "duo_jobs/errors"
require_relative "duo_jobs/job"
require_relative "duo_jobs/event_parser"
require_relative "duo_jobs/transport"
require_relative "duo_jobs/client"
require_relative "duo_jobs/webhook"
