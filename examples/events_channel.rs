//! Events to another thread: slow work (a database, a web request) goes on while updates do.

#[path = "../tests/support/sandbox.rs"]
mod sandbox;
#[path = "../tests/support/server.rs"]
mod server;

use std::thread;

use genesys_attributes::{Client, Credentials, Error, Region, Update};
use sandbox::{CLIENT_ID, CLIENT_SECRET, Sandbox};

fn main() -> Result<(), Error> {
    let sandbox = Sandbox::start();
    sandbox.world(|world| world.auto_create = true);
    let credentials = Credentials::new(CLIENT_ID, CLIENT_SECRET);
    let client = Client::builder(Region::parse("us-east-1")?, credentials)
        .base_url(sandbox.url())
        .build()?;

    // Room for 1,000 events. When it is full, new ones are dropped and counted: an update never
    // waits for who listens.
    let events = client.subscribe(1_000);
    let listener = thread::spawn(move || {
        let mut seen = 0;
        for event in events {
            if event.lost_before > 0 {
                eprintln!("{} events were lost", event.lost_before);
            }
            println!("{}", event.webhook_payload());
            seen += 1;
        }
        seen
    });

    for n in 1..=3 {
        let update = Update::participant(format!("c-{n}"), "customer").set("tier", "gold");
        client.update(&update)?;
    }
    // The channel ends with the last clone of the client.
    drop(client);
    let seen = listener.join().unwrap_or_default();
    println!("{seen} events");
    Ok(())
}
