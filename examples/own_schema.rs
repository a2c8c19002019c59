//! Rules of your own, checked together with the platform's before anything is sent. All violations
//! come at once, and none of them holds a value.

#[path = "../tests/support/sandbox.rs"]
mod sandbox;
#[path = "../tests/support/server.rs"]
mod server;

use genesys_attributes::validate::{Field, Schema, Violation};
use genesys_attributes::{Client, Credentials, Error, Region, Update};
use sandbox::{CLIENT_ID, CLIENT_SECRET, Sandbox};

fn main() -> Result<(), Error> {
    let sandbox = Sandbox::start();
    sandbox.world(|world| {
        world.add("c-1");
    });
    let tiers = ["standard", "gold", "premium"];
    let schema = Schema::new()
        .key("customer.tier", Field::text().required().one_of(tiers))
        .key("routing.*", Field::integer().range(0, 100))
        .forbid("routing.internal.*")
        .only_known_keys()
        .check(|attributes| {
            let premium = attributes
                .get("customer.tier")
                .is_some_and(|t| t == "premium");
            if premium && !attributes.contains_key("routing.score") {
                let problem = "nothing, where a premium customer needs a score";
                return vec![Violation::custom("routing.score", "premium-score", problem)];
            }
            Vec::new()
        });
    let credentials = Credentials::new(CLIENT_ID, CLIENT_SECRET);
    let client = Client::builder(Region::parse("us-east-1")?, credentials)
        .base_url(sandbox.url())
        .schema(schema)
        .build()?;

    let wrong = Update::participant("c-1", "customer")
        .set("customer.tier", "premium")
        .set("routing.priority", 101)
        .set("note", 1.5);
    if let Err(error) = client.update(&wrong) {
        for violation in error.violations() {
            println!("{violation}");
        }
    }
    println!("requests sent: {}", sandbox.requests().len());

    let right = Update::participant("c-1", "customer")
        .set("customer.tier", "premium")
        .set("routing.score", 85);
    println!("{}", client.update(&right)?.outcome);
    Ok(())
}
