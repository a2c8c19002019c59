//! The main job: one update of a conversation's attributes, end to end.
//!
//! Without credentials in the environment it starts an embedded sandbox (a stand-in for the
//! platform on a port of this machine) and runs against that over real HTTP. With
//! `GENESYS_CLOUD_REGION`, `GENESYS_CLOUD_CLIENT_ID` and `GENESYS_CLOUD_CLIENT_SECRET` set it runs
//! against the real platform; `TARGET_CONVERSATION_ID` names the conversation then, and the customer
//! in it gets the attributes, since the platform has no conversation-level endpoint as the sandbox
//! has.

#[path = "../tests/support/sandbox.rs"]
mod sandbox;
#[path = "../tests/support/server.rs"]
mod server;

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use genesys_attributes::audit::AuditRecord;
use genesys_attributes::clock::rfc3339;
use genesys_attributes::{
    Client, ClientBuilder, Credentials, Error, ErrorKind, RateLimit, Region, Target, Update,
};
use log::{error, info};
use sandbox::{Action, CLIENT_ID, CLIENT_SECRET, Fault, Sandbox};
use serde_json::json;

fn main() -> ExitCode {
    // The library warns of conflicts and rate limits through `log`, too.
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
        .target(env_logger::Target::Stdout)
        .format(|out, record| writeln!(out, "{:5} {}", record.level(), record.args()))
        .init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!("[FAILURE] {failure}");
            let mut cause = std::error::Error::source(&failure);
            while let Some(error) = cause {
                error!("  because: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Error> {
    let credentials_given = ["GENESYS_CLOUD_", "GENESYSCLOUD_"].iter().any(|family| {
        std::env::vars_os().any(|(name, _)| name.to_string_lossy().starts_with(family))
    });
    let conversation = std::env::var("TARGET_CONVERSATION_ID")
        .unwrap_or_else(|_| "00000000-0000-0000-0000-000000000000".to_owned());

    if credentials_given {
        let client = with_hooks(ClientBuilder::from_env()?).build()?;
        return main_job(&client, Update::participant(conversation, "customer"));
    }

    let sandbox = Sandbox::start();
    println!(
        "No credentials in the environment: using an embedded sandbox at {}\n",
        sandbox.url()
    );
    sandbox.world(|world| {
        world.add(&conversation);
        // Another writer gets in between the read and the write, and then the platform is busy.
        let (key, value) = ("agent.note".into(), json!("written by somebody else"));
        world.script(Fault::on_write(Action::Interfere { key, value }));
        world.script(Fault::on_write(Action::rate_limited(1)));
    });
    let builder = Client::builder(
        Region::parse("us-east-1")?,
        Credentials::new(CLIENT_ID, CLIENT_SECRET),
    )
    .base_url(sandbox.url())
    .rate_limit(RateLimit::unlimited());
    let client = with_hooks(builder).build()?;
    main_job(&client, Update::conversation(&conversation))?;
    beyond_the_main_job(&client, &sandbox, &conversation)
}

fn with_hooks(builder: ClientBuilder) -> ClientBuilder {
    builder
        .audit(|record: &AuditRecord| {
            info!("[AUDIT] {}", serde_json::to_string(record)?);
            Ok(())
        })
        .on_update(|event| info!("[WEBHOOK] {}", event.webhook_payload()))
}

/// Four attributes of each kind of value, and what the update leaves behind.
fn main_job(client: &Client, update: Update) -> Result<(), Error> {
    let downstream = client.subscribe(100);
    let update = update
        .set("campaign.id", "12345")
        .set("customer.tier", "premium")
        .set("routing.score", 85)
        .set("last.updated", rfc3339(SystemTime::now()));

    let target = update.target();
    info!(
        "[INIT] updating the {} attributes of conversation {}",
        target.kind(),
        target.conversation_id()
    );
    let receipt = client.update(&update)?;
    info!(
        "[SUCCESS] {} as version {} on top of {}, after {} writes and {} requests in {:?}",
        receipt.outcome,
        receipt.version.as_deref().unwrap_or("none"),
        receipt.previous_version.as_deref().unwrap_or("none"),
        receipt.attempts,
        receipt.requests,
        receipt.latency,
    );
    info!("[METRICS] {}", client.metrics().to_json());
    if let Some(event) = downstream.recv_timeout(Duration::from_secs(1)) {
        info!(
            "[DOWNSTREAM] event {} sets {:?}",
            event.sequence,
            event.updated_keys()
        );
    }
    client.flush(Duration::from_secs(1))
}

/// What the sandbox can show on demand, and a live platform only by chance.
fn beyond_the_main_job(
    client: &Client,
    sandbox: &Sandbox,
    conversation: &str,
) -> Result<(), Error> {
    println!("\n--- The other writer's attribute is still there");
    let both = client.read(&Target::conversation(conversation))?;
    let score: Option<u32> = both.get("routing.score")?;
    let note: Option<String> = both.get("agent.note")?;
    println!("routing.score is {score:?}, agent.note is {note:?}");

    println!("\n--- Four violations at once: all reported, nothing sent");
    sandbox.clear_requests();
    let invalid = Update::conversation(conversation)
        .set("", "empty key")
        .set("routing.score", -1)
        .set("notes", "x".repeat(1_025))
        .set("tags", json!(["a", "b"]));
    match client.update(&invalid) {
        Err(error) if error.kind() == ErrorKind::InvalidInput => {
            for violation in error.violations() {
                println!("  {violation}");
            }
        }
        Err(error) => return Err(error),
        Ok(_) => println!("  unexpectedly applied"),
    }
    println!("requests sent: {}", sandbox.requests().len());

    println!("\n--- The platform's own store: a participant's attributes");
    let receipt = client.update(
        &Update::participant(conversation, "customer")
            .set("customer.tier", "premium")
            .set("routing.score", 85),
    )?;
    let snapshot = client.read(&Target::participant(conversation, "customer"))?;
    println!(
        "the customer is participant {}; after {} requests it holds {}",
        receipt.resource_id.as_deref().unwrap_or("?"),
        receipt.requests,
        serde_json::Value::from(snapshot.attributes)
    );
    Ok(())
}
