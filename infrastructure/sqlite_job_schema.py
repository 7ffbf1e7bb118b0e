"""The tables of jobs in a SQLite file, and how a file of an older version comes to have them."""

MIGRATIONS = (
    """
    CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of acceptance
        id TEXT NOT NULL UNIQUE,
        status TEXT NOT NULL,
        bulk INTEGER NOT NULL,
        model TEXT NOT NULL,
        due REAL NOT NULL,
        revision INTEGER NOT NULL,
        record BLOB NOT NULL
    );
    -- Each of these is in order of seq where the columns are equal.
    CREATE INDEX jobs_by_status ON jobs (status);
    CREATE INDEX jobs_by_model ON jobs (model);
    CREATE INDEX jobs_by_model_and_status ON jobs (model, status);
    CREATE INDEX jobs_queued ON jobs (bulk) WHERE status = 'queued';
    CREATE INDEX jobs_by_due ON jobs (due);
    -- Two tables, so that outcomes are written without their instances being written again.
    CREATE TABLE instances (job TEXT NOT NULL, number INTEGER NOT NULL, body BLOB, UNIQUE (job, number));
    CREATE TABLE outcomes (job TEXT NOT NULL, number INTEGER NOT NULL, body BLOB, UNIQUE (job, number));
    CREATE TABLE uploads (job TEXT PRIMARY KEY, put_at REAL NOT NULL) WITHOUT ROWID;  -- not created yet
    CREATE INDEX uploads_by_age ON uploads (put_at);
    CREATE TABLE idempotency_keys (
        partition TEXT NOT NULL,
        key TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        job TEXT NOT NULL,
        PRIMARY KEY (partition, key)
    ) WITHOUT ROWID;
    CREATE INDEX idempotency_keys_by_job ON idempotency_keys (job);
    -- How many are queued, as it is asked once a second: counting a million would take 0.2 s.
    CREATE TABLE backlog (bulk INTEGER PRIMARY KEY, jobs INTEGER NOT NULL);
    INSERT INTO backlog VALUES (0, 0), (1, 0);
    CREATE TRIGGER job_created AFTER INSERT ON jobs WHEN new.status = 'queued'
        BEGIN UPDATE backlog SET jobs = jobs + 1 WHERE bulk = new.bulk; END;
    CREATE TRIGGER job_changed AFTER UPDATE OF status ON jobs
        WHEN (new.status = 'queued') != (old.status = 'queued')
        BEGIN UPDATE backlog SET jobs = jobs + iif(new.status = 'queued', 1, -1) WHERE bulk = new.bulk; END;
    CREATE TRIGGER job_deleted AFTER DELETE ON jobs WHEN old.status = 'queued'
        BEGIN UPDATE backlog SET jobs = jobs - 1 WHERE bulk = old.bulk; END;
    """,
    """
    -- A job with its only chunk, as many in one statement as are accepted together (SqliteJobs.create).
    CREATE VIEW accepted AS
        SELECT id, status, bulk, model, due, revision, record, NULL AS instances FROM jobs;
    CREATE TRIGGER job_accepted INSTEAD OF INSERT ON accepted BEGIN
        INSERT INTO jobs (id, status, bulk, model, due, revision, record)
            VALUES (new.id, new.status, new.bulk, new.model, new.due, new.revision, new.record)
            ON CONFLICT (id) DO NOTHING;
        INSERT OR REPLACE INTO instances (job, number, body) VALUES (new.id, 0, new.instances);
    END;
    """,
)
