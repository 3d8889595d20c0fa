-- JSON Schemas of events' properties. A version never changes once it is there.
CREATE TABLE event_schemas (
    project     text NOT NULL REFERENCES projects,
    event_type  text NOT NULL,
    version     integer NOT NULL CHECK (version > 0),
    schema      jsonb NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project, event_type, version)
);

ALTER TABLE projects
    -- What gateways do with events that break their type's newest schema.
    ADD COLUMN schema_mode text NOT NULL DEFAULT 'off' CHECK (schema_mode IN ('off', 'warn', 'strict')),
    -- The last registration. Gateways learn of it with the API key; what they have cached of an earlier one is old.
    -- A time and not a count, so that a restored database does not give one value two meanings.
    ADD COLUMN schemas_changed_at timestamptz NOT NULL DEFAULT now();
