//! The main job: one update of a conversation's attributes, end to end.
//!
//! Without credentials in the environment it starts an embedded sandbox (a stand-in for the
//! platform on a port of this machine) and runs against that over real HTTP. With
//! `GENESYS_CLOUD_REGION`, `GENESYS_CLOUD_CLIENT_ID` and `GENESYS_CLOUD_CLIENT_SECRET` set it runs
//! against the real platform; `TARGET_CONVERSATION_ID` names the conversation then.

#[path = "../tests/support/sandbox.rs"]
mod sandbox;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use genesys_attributes::{
    Client, ClientBuilder, Credentials, Error, ErrorKind, JsonLines, RateLimit, Region, Target,
    Update, UpdateEvent, rfc3339,
};
use sandbox::{Action, CLIENT_ID, CLIENT_SECRET, Sandbox, Scripted};
use serde_json::json;

/// What the update leaves behind, kept to be printed in its turn.
#[derive(Clone, Default)]
struct Traces {
    event: Arc<Mutex<Option<UpdateEvent>>>,
    audit: Lines,
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut lines = self.0.lock().map_err(|_| io::Error::other("poisoned"))?;
        lines.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn"))
        .format_timestamp(None)
        .init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("[FAILURE] {error}");
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                eprintln!("  because: {error}");
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
    let traces = Traces::default();

    if credentials_given {
        let client = with_hooks(ClientBuilder::from_env()?, &traces).build()?;
        return main_job(&client, &conversation, &traces);
    }

    let sandbox = Sandbox::start();
    sandbox.world(|world| {
        world.add(&conversation);
    });
    println!(
        "No credentials in the environment: using an embedded sandbox at {}\n",
        sandbox.url()
    );
    let builder = Client::builder(
        Region::parse("us-east-1")?,
        Credentials::new(CLIENT_ID, CLIENT_SECRET),
    )
    .base_url(sandbox.url())
    .rate_limit(RateLimit::unlimited());
    let client = with_hooks(builder, &traces).build()?;
    main_job(&client, &conversation, &traces)?;
    beyond_the_main_job(&client, &sandbox, &conversation)
}

fn with_hooks(builder: ClientBuilder, traces: &Traces) -> ClientBuilder {
    let received = traces.event.clone();
    builder
        .audit(JsonLines::new(traces.audit.clone()))
        .on_update(move |event| {
            if let Ok(mut slot) = received.lock() {
                slot.get_or_insert_with(|| event.clone());
            }
        })
}

/// The brief's four attributes, and what the update leaves behind.
fn main_job(client: &Client, conversation: &str, traces: &Traces) -> Result<(), Error> {
    let update = Update::conversation(conversation)
        .set("campaign.id", "12345")
        .set("customer.tier", "premium")
        .set("routing.score", 85)
        .set("last.updated", rfc3339(SystemTime::now()));

    println!("[INIT] updating conversation {conversation}");
    let receipt = client.update(&update)?;
    println!("[RECEIPT]\n{}", pretty(&receipt));

    if let Ok(event) = traces.event.lock()
        && let Some(event) = event.as_ref()
    {
        println!("\n[EVENT] as a hook received it\n{}", pretty(event));
        println!("\n[WEBHOOK_PAYLOAD]\n{:#}", event.webhook_payload());
    }
    println!("\n[AUDIT]");
    if let Ok(lines) = traces.audit.0.lock() {
        print!("{}", String::from_utf8_lossy(&lines));
    }
    println!("\n[METRICS]\n{:#}", client.metrics().to_json());
    Ok(())
}

/// What the sandbox can show on demand, and a live platform only by chance.
fn beyond_the_main_job(
    client: &Client,
    sandbox: &Sandbox,
    conversation: &str,
) -> Result<(), Error> {
    println!("\n--- Another writer gets in between: 412, settled");
    sandbox.world(|world| {
        world.script(Scripted::on_write(Action::Interfere {
            key: "agent.note".into(),
            value: json!("written by somebody else"),
        }));
    });
    let receipt = client.update(&Update::conversation(conversation).set("routing.score", 90))?;
    println!(
        "applied as version {} on top of {}, after {} writes and {} requests",
        receipt.version.as_deref().unwrap_or("?"),
        receipt.previous_version.as_deref().unwrap_or("?"),
        receipt.attempts,
        receipt.requests
    );
    let both = client.read(&Target::conversation(conversation))?.attributes;
    println!(
        "both writes are there: routing.score = {}, agent.note = {}",
        both["routing.score"], both["agent.note"]
    );

    println!("\n--- 429 with Retry-After: 1, waited out");
    sandbox.world(|world| {
        world.script(Scripted::on_write(Action::RateLimited {
            retry_after: Some("1".into()),
        }));
    });
    let receipt = client.update(&Update::conversation(conversation).set("routing.score", 91))?;
    println!(
        "applied after {} writes; the update took {:?}",
        receipt.attempts, receipt.latency
    );

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
        receipt.item.as_deref().unwrap_or("?"),
        receipt.requests,
        serde_json::Value::from(snapshot.attributes)
    );
    Ok(())
}

fn pretty(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|e| e.to_string())
}
