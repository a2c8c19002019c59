//! Many updates from the rows of a CSV, by the library alone: a row that is no update becomes the
//! error of its line, and the others run.
//!
//! The rows here have no quotes; for files that have them use a CSV crate, or the program of this
//! crate, which reads CSV itself.

#[path = "../tests/support/sandbox.rs"]
mod sandbox;
#[path = "../tests/support/server.rs"]
mod server;

use std::ops::ControlFlow;

use genesys_attributes::{Batch, Client, Credentials, Error, ErrorKind, Region, Update};
use sandbox::{CLIENT_ID, CLIENT_SECRET, Sandbox};

const ROWS: &str = "\
conversation,tier,score
c-1,premium,85
c-2,gold,70
c-1,platinum,99
c-3,standard,oops
";

fn main() -> Result<(), Error> {
    let sandbox = Sandbox::start();
    sandbox.world(|world| world.auto_create = true);
    let credentials = Credentials::new(CLIENT_ID, CLIENT_SECRET);
    let client = Client::builder(Region::parse("us-east-1")?, credentials)
        .base_url(sandbox.url())
        .build()?;

    let report = Batch::new(&client)
        .workers(8)
        .on_notice(|notice| eprintln!("{notice}"))
        .run(ROWS.lines().skip(1).map(update), |outcome| {
            print!("row {}: {}", outcome.line, outcome.status);
            match &outcome.error {
                Some(error) => println!(" ({error})"),
                None => println!(" with {} requests", outcome.requests),
            }
            ControlFlow::Continue(())
        });
    println!("{} applied, {} failed", report.applied, report.failed);
    Ok(())
}

/// One row. Rows of the same conversation are applied in their order.
fn update(row: &str) -> Result<Update, Error> {
    let wrong = |what: &str| Error::new(ErrorKind::InvalidInput, what);
    let [conversation, tier, score] = row.split(',').collect::<Vec<_>>()[..] else {
        return Err(wrong("a row needs three cells"));
    };
    let score: u32 = score
        .parse()
        .map_err(|e| wrong("the score is no number").with_source(e))?;
    Ok(Update::participant(conversation, "customer")
        .set("customer.tier", tier)
        .set("routing.score", score))
}
