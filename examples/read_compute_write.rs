//! Read, compute and write under the lock: two clients count to 20 together, and no count is lost.

#[path = "../tests/support/sandbox.rs"]
mod sandbox;
#[path = "../tests/support/server.rs"]
mod server;

use genesys_attributes::{Attributes, Client, Credentials, Error, Region, Target};
use sandbox::{CLIENT_ID, CLIENT_SECRET, Sandbox};

fn main() -> Result<(), Error> {
    let sandbox = Sandbox::start();
    sandbox.world(|world| {
        world.add("c-1");
    });
    // Two clients, as two processes would be: between them only the platform's lock decides.
    let clients = [sandbox_client(&sandbox)?, sandbox_client(&sandbox)?];

    let target = Target::secure("c-1");
    std::thread::scope(|scope| {
        for client in &clients {
            scope.spawn(|| {
                for _ in 0..10 {
                    if let Err(error) = count(client, &target) {
                        eprintln!("{error}");
                    }
                }
            });
        }
    });

    let calls: Option<u32> = clients[0].read(&target)?.get("calls")?;
    let conflicts: u64 = clients.iter().map(|c| c.metrics().conflicts).sum();
    println!("calls is {calls:?} after {conflicts} conflicts");
    Ok(())
}

/// The closure is called again whenever somebody else wrote between its read and its write.
fn count(client: &Client, target: &Target) -> Result<(), Error> {
    client.update_with(target, |now| {
        let calls: u32 = now.get("calls")?.unwrap_or(0);
        let next = (calls + 1).to_string();
        Ok(Some(Attributes::from_iter([("calls".into(), next.into())])))
    })?;
    Ok(())
}

fn sandbox_client(sandbox: &Sandbox) -> Result<Client, Error> {
    let credentials = Credentials::new(CLIENT_ID, CLIENT_SECRET);
    Client::builder(Region::parse("us-east-1")?, credentials)
        .base_url(sandbox.url())
        .build()
}
