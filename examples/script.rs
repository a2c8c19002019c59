//! A script: one update and a look at the result, with an exit status that says what to do next.
//!
//! In a script of yours, `Client::from_env()` takes the place of `sandbox_client`.

#[path = "../tests/support/sandbox.rs"]
mod sandbox;
#[path = "../tests/support/server.rs"]
mod server;

use std::process::ExitCode;

use genesys_attributes::{Client, Credentials, Error, Participant, Region, Target, Update};
use sandbox::{CLIENT_ID, CLIENT_SECRET, Sandbox};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            // 75 is the usual status for "try again later".
            ExitCode::from(if error.is_transient() { 75 } else { 1 })
        }
    }
}

fn run() -> Result<(), Error> {
    let sandbox = Sandbox::start();
    sandbox.world(|world| {
        world.add("c-1");
    });
    let client = sandbox_client(&sandbox)?;

    let update = Update::participant("c-1", Participant::customer())
        .set("customer.tier", "premium")
        .set("routing.score", 85);
    let receipt = client.update(&update)?;
    println!("{} after {} requests", receipt.outcome, receipt.requests);

    let now = client.read(&Target::participant("c-1", Participant::customer()))?;
    // The platform keeps participants' values as text; a number in it is read as one.
    let score: Option<u32> = now.get("routing.score")?;
    println!("routing.score is {score:?}");
    Ok(())
}

fn sandbox_client(sandbox: &Sandbox) -> Result<Client, Error> {
    let credentials = Credentials::new(CLIENT_ID, CLIENT_SECRET);
    Client::builder(Region::parse("us-east-1")?, credentials)
        .base_url(sandbox.url())
        .build()
}
