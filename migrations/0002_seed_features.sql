-- Features, support levels and defaults that every installation starts with.

-- A keystroke's answer is worth nothing after about two seconds; others wait for a first byte as long as the
-- shortest client in front of GitLab does (55 s), and categories are given up after 15 s.
INSERT INTO features (name, title, kind, scopes, active, lane, first_byte_within_ms, end_within_ms) VALUES
    ('duo_chat', 'GitLab Duo Chat', 'language', '{duo_classic_chat,duo_chat,documentation_search,ask_build,ask_commit,ask_epic,ask_issue,ask_merge_request,ask_work_item}', false, 'interactive', 50000, 600000),
    ('code_completion', 'Code Completion', 'language', '{complete_code}', false, 'keystroke', 2500, 2500),
    ('code_generation', 'Code Generation', 'language', '{generate_code}', false, 'interactive', 50000, 600000),
    ('git_suggestions', 'Git Suggestions', 'language', '{glab_ask_git_command}', false, 'interactive', 50000, 600000),
    ('discussion_summary', 'Discussion Summary', 'language', '{summarize_comments}', false, 'interactive', 50000, 600000),
    ('issue_description_generation', 'Issue Description Generation', 'language', '{generate_issue_description}', false, 'interactive', 50000, 600000),
    ('test_generation', 'Test Generation', 'language', '{write_tests}', false, 'interactive', 50000, 600000),
    ('merge_request_template_population', 'MR template population', 'language', '{fill_in_merge_request_template}', false, 'interactive', 50000, 600000),
    ('suggested_reviewers', 'Suggested Reviewers', 'generic', '{suggested_reviewers}', false, 'interactive', 50000, 600000),
    ('merge_request_summary', 'Merge request summary', 'language', '{summarize_new_merge_request}', false, 'interactive', 50000, 600000),
    ('code_review_summary', 'Code review summary', 'language', '{summarize_review}', false, 'interactive', 50000, 600000),
    ('vulnerability_explanation', 'Vulnerability explanation', 'language', '{explain_vulnerability}', false, 'interactive', 50000, 600000),
    ('vulnerability_resolution', 'Vulnerability resolution', 'language', '{resolve_vulnerability}', false, 'interactive', 50000, 600000),
    ('code_explanation', 'Code explanation', 'language', '{explain_code}', false, 'interactive', 50000, 600000),
    ('root_cause_analysis', 'Root cause analysis', 'language', '{troubleshoot_job}', false, 'interactive', 50000, 600000),
    ('value_stream_forecasting', 'Value stream forecasting', 'generic', '{value_stream_forecasting}', false, 'interactive', 50000, 600000),
    ('categorize_question', 'Question categories', 'language', '{categorize_duo_chat_question}', false, 'interactive', 15000, 15000),
    ('classify_code_review_mention_intent', 'Intent of a code review mention', 'language', '{duo_agent_platform}', false, 'interactive', 50000, 600000),
    ('fix_code', 'Fix code', 'language', '{fix_code}', false, 'interactive', 50000, 600000),
    ('generate_commit_message', 'Commit message', 'language', '{generate_commit_message}', false, 'interactive', 50000, 600000),
    ('generate_session_title', 'Session title', 'language', '{duo_agent_platform}', false, 'interactive', 50000, 600000),
    ('measure_comment_temperature', 'Comment temperature', 'language', '{measure_comment_temperature}', false, 'interactive', 50000, 600000),
    ('refactor_code', 'Refactor code', 'language', '{refactor_code}', false, 'interactive', 50000, 600000),
    ('review_merge_request', 'Merge request review', 'language', '{review_merge_request}', false, 'interactive', 50000, 600000),
    ('summarize_duo_workflow', 'Workflow summary', 'language', '{duo_agent_platform}', false, 'interactive', 50000, 600000),
    ('openai_chat', 'OpenAI chat completions', 'openai', '{}', true, 'interactive', 50000, 600000),
    ('openai_completion', 'OpenAI completions', 'openai', '{}', true, 'interactive', 50000, 600000),
    ('openai_embedding', 'OpenAI embeddings', 'openai', '{}', true, 'interactive', 50000, 600000)
ON CONFLICT DO NOTHING;

-- Sixteen features by five families: to be evaluated, unless the second list says otherwise.
INSERT INTO support_levels (feature, family, level)
SELECT feature, family, 'to_be_evaluated'
FROM unnest(ARRAY[
    'duo_chat',
    'code_completion',
    'code_generation',
    'git_suggestions',
    'discussion_summary',
    'issue_description_generation',
    'test_generation',
    'merge_request_template_population',
    'suggested_reviewers',
    'merge_request_summary',
    'code_review_summary',
    'vulnerability_explanation',
    'vulnerability_resolution',
    'code_explanation',
    'root_cause_analysis',
    'value_stream_forecasting'
]) AS feature,
unnest(ARRAY['mistral_7b', 'mixtral_8x7b', 'mixtral_8x22b', 'codegemma_7b', 'codegemma_2b']) AS family
ON CONFLICT DO NOTHING;

UPDATE support_levels SET level = known.level
FROM (VALUES
    ('code_completion', 'mistral_7b', 'not_supported'),
    ('code_completion', 'mixtral_8x7b', 'not_supported'),
    ('code_completion', 'mixtral_8x22b', 'not_supported'),
    ('code_completion', 'codegemma_7b', 'supported'),
    ('code_completion', 'codegemma_2b', 'supported'),
    ('code_generation', 'mistral_7b', 'supported'),
    ('code_generation', 'mixtral_8x7b', 'supported'),
    ('code_generation', 'mixtral_8x22b', 'supported'),
    ('vulnerability_explanation', 'mistral_7b', 'not_supported')
) AS known (feature, family, level)
WHERE support_levels.feature = known.feature AND support_levels.family = known.family;

-- Further prompts of a present GitLab: to be evaluated with every family. The OpenAI features have no prompt of
-- ours, so they go with every family.
INSERT INTO support_levels (feature, family, level)
SELECT name, '*', CASE kind WHEN 'openai' THEN 'supported' ELSE 'to_be_evaluated' END
FROM features
WHERE NOT EXISTS (SELECT FROM support_levels WHERE support_levels.feature = features.name)
ON CONFLICT DO NOTHING;
