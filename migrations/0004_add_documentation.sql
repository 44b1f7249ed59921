-- Documentation that chat answers from, cut into sections. Built by `duo-broker docs index`, one index per version.
CREATE TABLE documentation_versions (
    version  text COLLATE "C" PRIMARY KEY,
    pages    bigint NOT NULL CHECK (pages >= 0),
    sections bigint NOT NULL CHECK (sections >= 0),
    built_at timestamptz NOT NULL DEFAULT now()
);

-- A title says most about a section, its heading more than its text.
CREATE TABLE documentation_sections (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    version text COLLATE "C" NOT NULL REFERENCES documentation_versions (version) ON DELETE CASCADE,
    path    text NOT NULL,
    url     text NOT NULL,
    title   text NOT NULL,
    heading text NOT NULL,
    content text NOT NULL,
    words   tsvector NOT NULL GENERATED ALWAYS AS (
        setweight(to_tsvector('english', title), 'A')
        || setweight(to_tsvector('english', heading), 'B')
        || setweight(to_tsvector('english', content), 'D')
    ) STORED
);
CREATE INDEX documentation_sections_words ON documentation_sections USING gin (words);
-- An earlier index goes by its version.
CREATE INDEX documentation_sections_version ON documentation_sections (version);
