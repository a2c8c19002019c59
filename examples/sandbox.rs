//! Keeps the stand-in for the platform running on a port of this machine, so that the program,
//! scripts and other languages can be tried without an organization.
//!
//! It speaks the token endpoint, the conversation, participant, secure and custom stores with
//! their versions and error bodies. Nothing is kept when it ends.

#[path = "../tests/support/sandbox.rs"]
mod sandbox;

use lexopt::prelude::*;
use sandbox::{Action, CLIENT_ID, CLIENT_SECRET, Recurring, Sandbox, Scripted};
use serde_json::json;

const HELP: &str = "\
A stand-in for the platform on a port of this machine.

Usage: cargo run --example sandbox -- [OPTIONS]

  --port N              port to listen on (default 8080)
  --conversation ID     a conversation to begin with; may be given several times.
                        Without any, every id that is asked for comes into being
  --conflict-every N    another writer gets in before each N-th write
  --throttle-every N    each N-th API request is answered 429 with Retry-After: 1
  --fail-every N        each N-th write is applied, but answered 503
  --rate N              at most N API requests a minute; beyond that 429
  --token-lifetime S    seconds that a token is said to be good for (default 86400)
";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut port = 8080;
    let mut conversations: Vec<String> = Vec::new();
    let mut recurring = Vec::new();
    let mut rate = None;
    let mut token_lifetime = 86_400;
    let mut args = lexopt::Parser::from_env();
    let every = |args: &mut lexopt::Parser, scripted| -> Result<Recurring, lexopt::Error> {
        Ok(Recurring {
            every: args.value()?.parse()?,
            scripted,
            matched: 0,
        })
    };
    while let Some(arg) = args.next()? {
        match arg {
            Long("port") => port = args.value()?.parse()?,
            Long("conversation") => conversations.push(args.value()?.string()?),
            Long("conflict-every") => recurring.push(every(
                &mut args,
                Scripted::on_write(Action::Interfere {
                    key: "other.writer".into(),
                    value: json!("was here"),
                }),
            )?),
            Long("throttle-every") => {
                let mut throttled = every(
                    &mut args,
                    Scripted::any(Action::RateLimited {
                        retry_after: Some("1".into()),
                    }),
                )?;
                throttled.scripted.path_contains = Some("/api/".into());
                recurring.push(throttled);
            }
            Long("fail-every") => recurring.push(every(
                &mut args,
                Scripted::on_write(Action::ApplyThenStatus {
                    status: 503,
                    body: serde_json::Value::Null,
                }),
            )?),
            Long("rate") => rate = Some(args.value()?.parse()?),
            Long("token-lifetime") => token_lifetime = args.value()?.parse()?,
            Short('h') | Long("help") => {
                print!("{HELP}");
                return Ok(());
            }
            _ => return Err(arg.unexpected().into()),
        }
    }

    // Tried first, since the stand-in could only panic.
    if let Err(error) = std::net::TcpListener::bind(("127.0.0.1", port)) {
        return Err(format!("port {port} cannot be used ({error}): give another by --port").into());
    }
    let sandbox = Sandbox::start_on(port);
    sandbox.world(|world| {
        world.auto_create = conversations.is_empty();
        for id in &conversations {
            world.add(id);
        }
        world.recurring = recurring;
        world.rate_limit_per_minute = rate;
        world.token_lifetime = token_lifetime;
        world.record_requests = false;
    });
    println!(
        "The sandbox is listening. In another terminal:\n\n\
         export GENESYS_CLOUD_BASE_URL={}\n\
         export GENESYS_CLOUD_CLIENT_ID={CLIENT_ID}\n\
         export GENESYS_CLOUD_CLIENT_SECRET={CLIENT_SECRET}\n\n\
         It runs until it is stopped (Ctrl-C).",
        sandbox.url()
    );
    loop {
        std::thread::park();
    }
}
