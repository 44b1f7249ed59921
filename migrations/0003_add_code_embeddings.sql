-- Vectors of a repository's code, for GitLab's search over it. Inactive until a model is assigned. It has no prompt,
-- and which families embed nobody can tell by name, so it goes with every family.
INSERT INTO features (name, title, kind, scopes, active, lane, first_byte_within_ms, end_within_ms) VALUES
    ('code_embeddings', 'Code embeddings', 'language', '{generate_embeddings_codebase}', false, 'interactive', 50000, 600000)
ON CONFLICT DO NOTHING;

INSERT INTO support_levels (feature, family, level) VALUES ('code_embeddings', '*', 'supported')
ON CONFLICT DO NOTHING;
