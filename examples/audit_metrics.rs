//! An audit trail in a file, with no write that is not recorded first, and metrics for Prometheus.

#[path = "../tests/support/sandbox.rs"]
mod sandbox;
#[path = "../tests/support/server.rs"]
mod server;

use std::fs::{self, OpenOptions};
use std::time::Duration;

use genesys_attributes::audit::{AuditMode, AuditRecord, JsonLines};
use genesys_attributes::{Client, Credentials, Region, Update};
use sandbox::{CLIENT_ID, CLIENT_SECRET, Sandbox};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sandbox = Sandbox::start();
    sandbox.world(|world| {
        world.add("c-1");
    });
    let path = std::env::temp_dir().join(format!("audit-{}.jsonl", std::process::id()));
    let file = OpenOptions::new().create(true).append(true).open(&path)?;
    let credentials = Credentials::new(CLIENT_ID, CLIENT_SECRET);
    let client = Client::builder(Region::parse("us-east-1")?, credentials)
        .base_url(sandbox.url())
        .audit(JsonLines::new(file))
        .audit_mode(AuditMode::Strict)
        .build()?;

    client.update(&Update::secure("c-1").set("iban", "a value that the trail does not hold"))?;
    // Refused before anything is sent, and recorded as such.
    let refused = client.update(&Update::secure("c-1").set("", "no key"));
    println!("refused: {}", refused.is_err());
    client.flush(Duration::from_secs(5))?;

    for line in fs::read_to_string(&path)?.lines() {
        let record: AuditRecord = serde_json::from_str(line)?;
        println!(
            "{:?} {} of {:?}",
            record.phase, record.status, record.updated_keys
        );
    }
    fs::remove_file(&path)?;

    let metrics = client.metrics();
    println!("{} calls, {} applied", metrics.calls, metrics.applied);
    println!("{}", metrics.to_prometheus());
    Ok(())
}
