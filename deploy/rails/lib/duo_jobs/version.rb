# frozen_string_literal: true

module DuoJobs
  VERSION = "0.1.0"
end
