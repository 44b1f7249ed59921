# frozen_string_literal: true

require_relative "lib/duo_jobs/version"

Gem::Specification.new do |spec|
  spec.name = "duo_jobs"
  spec.version = DuoJobs::VERSION
  spec.summary = "Jobs of a duo-broker: submit and leave, look later, be told by a webhook"
  spec.description = "Client of the job API of duo-broker, an AI Gateway for GitLab Duo with a durable queue. Nothing but Ruby's " \
                     "own standard library."
  spec.authors = ["The authors of duo-broker"]
  spec.license = "Apache-2.0"
  spec.required_ruby_version = ">= 3.1"
  spec.files = Dir["lib/**/*.rb", "examples/*.rb", "README.md", base: __dir__]
  spec.metadata["rubygems_mfa_required"] = "true"
end
