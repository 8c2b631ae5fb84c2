//! Texts to store.

/// Sentences of about 40 tokens that differ from each other.
pub(crate) fn fact(number: usize) -> String {
    const SUBJECTS: [&str; 8] = [
        "billing",
        "search",
        "login",
        "export",
        "deployment",
        "metrics",
        "billing API",
        "cache",
    ];
    const VERBS: [&str; 7] = [
        "retries",
        "rejects",
        "queues",
        "encrypts",
        "logs",
        "compresses",
        "validates",
    ];
    const OBJECTS: [&str; 9] = [
        "requests", "events", "sessions", "uploads", "records", "tokens", "backups", "jobs", "webhooks",
    ];
    const REASONS: [&str; 5] = [
        "because the previous release lost data under load",
        "so that an operator can replay them after an outage",
        "as agreed with the security team in the last review",
        "to keep the p99 latency of the public endpoint low",
        "since the upstream provider limits the request rate",
    ];
    format!(
        "The {} service {} {} number {number} {}; see ticket OPS-{} and the function handle{}V{} for the details of it.",
        SUBJECTS[number % 8],
        VERBS[number % 7],
        OBJECTS[number % 9],
        REASONS[number % 5],
        number * 7 % 10_007,
        OBJECTS[number % 9],
        number % 13,
    )
}
