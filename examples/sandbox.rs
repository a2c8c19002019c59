//! Keeps the stand-in for the platform running on a port of this machine, so that the program,
//! scripts and other languages can be tried without an organization.
//!
//! It speaks the token endpoint, the conversation, participant, secure and custom stores with
//! their versions and error bodies. Nothing is kept when it ends.

#[path = "../tests/support/sandbox.rs"]
mod sandbox;
#[path = "../tests/support/server.rs"]
mod server;

use lexopt::prelude::*;
use sandbox::{Action, CLIENT_ID, CLIENT_SECRET, Fault, Sandbox};
use serde_json::Value;

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
    let mut faults: Vec<Fault> = Vec::new();
    let mut rate = None;
    let mut token_lifetime = 86_400;
    let mut args = lexopt::Parser::from_env();
    while let Some(arg) = args.next()? {
        match arg {
            Long("port") => port = args.value()?.parse()?,
            Long("conversation") => conversations.push(args.value()?.string()?),
            Long("conflict-every") => {
                let (key, value) = ("other.writer".into(), "was here".into());
                let other = Fault::on_write(Action::Interfere { key, value });
                faults.push(other.every(args.value()?.parse()?));
            }
            Long("throttle-every") => {
                let throttled = Fault::on_api(Action::rate_limited(1));
                faults.push(throttled.every(args.value()?.parse()?));
            }
            Long("fail-every") => {
                let (status, body) = (503, Value::Null);
                let failing = Fault::on_write(Action::ApplyThenStatus { status, body });
                faults.push(failing.every(args.value()?.parse()?));
            }
            Long("rate") => rate = Some(args.value()?.parse()?),
            Long("token-lifetime") => token_lifetime = args.value()?.parse()?,
            Short('h') | Long("help") => {
                print!("{HELP}");
                return Ok(());
            }
            _ => return Err(arg.unexpected().into()),
        }
    }

    let sandbox = Sandbox::start_on(port)
        .map_err(|error| format!("port {port} cannot be used ({error}): give another by --port"))?;
    sandbox.world(|world| {
        world.auto_create = conversations.is_empty();
        for id in &conversations {
            world.add(id);
        }
        for fault in faults {
            world.script(fault);
        }
        world.rate_limit_per_minute = rate;
        world.token_lifetime = token_lifetime;
        world.keep_log = false;
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
