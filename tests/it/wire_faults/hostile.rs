//! Servers that mean harm: without end, without sense, too slow, too large. Each costs bounded time
//! and memory, and a typed error.

use super::*;

use std::sync::atomic::AtomicU64;
use std::time::Instant;

/// A server that sends `next` again and again, from the first request on, for as long as anybody
/// takes it, and counts the bytes.
struct Flood {
    address: SocketAddr,
    sent: Arc<AtomicU64>,
    stopping: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Flood {
    /// `pace`: how long it waits between two pieces, for the client to say or to close something.
    fn start(head: &'static str, piece: &'static [u8], pace: Option<Duration>) -> Flood {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sent, stopping) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (count, stop) = (sent.clone(), stopping.clone());
        let acceptor = std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let mut request = [0; 4_096];
                let _ = stream.read(&mut request);
                let _ = stream.set_read_timeout(pace);
                let _ = stream.write_all(head.as_bytes());
                while !stop.load(Ordering::SeqCst) && stream.write_all(piece).is_ok() {
                    count.fetch_add(piece.len() as u64, Ordering::SeqCst);
                    // The client has nothing more to say, so this takes as long as the pace.
                    if pace.is_some() && stream.read(&mut request).is_ok_and(|read| read == 0) {
                        break;
                    }
                }
            }
        });
        Flood {
            address,
            sent,
            stopping,
            acceptor: Some(acceptor),
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// The longest limit of a request here.
const LIMIT: Duration = Duration::from_millis(400);

/// A client that tries once, with limits that pass in a test.
fn hurried(url: &str) -> Client {
    let limits = Timeouts::default().with_response(LIMIT).with_body(LIMIT);
    builder(url)
        .timeouts(limits)
        .retry(RetryPolicy::default().with_max_attempts(1))
        .build()
        .unwrap()
}

#[test]
fn hostile_flood_ends_with_a_typed_error_in_bounded_time_and_memory() {
    const LINE: &[u8] = b"X-Padding: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n";
    static PIECE: [u8; 1 << 16] = [b'x'; 1 << 16];
    let drip = Some(Duration::from_millis(20));
    let (endless, length) = (
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n",
    );
    for (name, head, piece, pace, kind) in [
        (
            "headers without end",
            "HTTP/1.1 200 OK\r\n",
            LINE,
            None,
            ErrorKind::Protocol,
        ),
        (
            "one header without end",
            "HTTP/1.1 200 OK\r\nX: ",
            &PIECE[..],
            None,
            ErrorKind::Protocol,
        ),
        (
            "a status line without end",
            "HTTP/1.1 200 ",
            &PIECE,
            None,
            ErrorKind::Protocol,
        ),
        ("a body of 1 GiB", length, &PIECE, None, ErrorKind::Protocol),
        (
            "a body without end",
            endless,
            &PIECE,
            None,
            ErrorKind::Protocol,
        ),
        (
            "a head byte by byte",
            "HTTP/1.1 200 OK\r\nX: ",
            b"x",
            drip,
            ErrorKind::Timeout,
        ),
        (
            "headers line by line",
            "HTTP/1.1 200 OK\r\n",
            LINE,
            drip,
            ErrorKind::Timeout,
        ),
        (
            "a body byte by byte",
            length,
            b"x",
            drip,
            ErrorKind::Timeout,
        ),
    ] {
        let flood = Flood::start(head, piece, pace);
        let client = hurried(&flood.url());
        let begun = Instant::now();
        let error = client.update(&update()).unwrap_err();
        let took = begun.elapsed();
        let text = error.to_string();
        assert_eq!(error.kind(), kind, "{name}: {text}");
        assert!(
            text.len() < 1_000 && !text.contains("xxx"),
            "{name}: {text}"
        );
        assert!(!error.may_have_applied(), "{name}");
        // Two limits, and a lot of patience with a busy machine.
        assert!(took < Duration::from_secs(10), "{name}: {took:?}");
        drop(client);
        let sent = flood.sent.load(Ordering::SeqCst);
        // What is taken, and what the system's buffers hold.
        assert!(sent < 32 << 20, "{name}: {sent} bytes were sent");
    }
}

/// A write is confirmed by its status, whatever is poured out behind it.
#[test]
fn hostile_body_behind_a_confirmed_write_changes_nothing() {
    static PIECE: [u8; 1 << 16] = [b'x'; 1 << 16];
    let flood = Flood::start("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", &PIECE, None);
    let client = hurried(&flood.url());
    let receipt = client.update(&direct()).unwrap();
    assert_eq!((receipt.outcome, receipt.attempts), (Outcome::Applied, 1));
    assert_eq!(
        (receipt.version.as_deref(), receipt.response().is_some()),
        (None, false)
    );
}

fn answered(body: &str) -> Act {
    Act::Respond {
        status: 200,
        headers: vec![("Connection", "close".to_owned())],
        body: body.to_owned(),
    }
}

#[test]
fn hostile_answers_to_reads_are_typed_errors() {
    let deep = format!(
        "{{\"version\":{}1{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let keys = format!(
        "{{{}\"version\":\"6\"}}",
        "\"version\":\"5\",".repeat(20_000)
    );
    for (name, body) in [
        ("deep", deep.as_str()),
        ("a huge version", r#"{"version":1e999}"#),
        (
            "many digits",
            r#"{"version":99999999999999999999999999999999999999}"#,
        ),
        ("a fraction", r#"{"version":6.5}"#),
        ("a version that is a list", r#"{"version":["6"]}"#),
        (
            "a version with a line end",
            r#"{"version":"6\r\nX-Evil: 1"}"#,
        ),
        ("a version with a quote", r#"{"version":"6\", \"7"}"#),
        // Which of the versions is meant nobody can tell.
        ("repeated keys", keys.as_str()),
        ("nothing", ""),
        ("half a surrogate", r#"{"version":"\ud800"}"#),
    ] {
        let wire = Wire::start(scripts![[Act::ReadRequest, answered(body), Act::Close]]);
        let client = hurried(&wire.url());
        let error = client.update(&update()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{name}: {error}");
        assert!(error.to_string().len() < 1_000, "{name}");
        drop(client);
        assert_eq!(methods(&wire.finish().requests), ["GET"], "{name}");
    }
    // Bytes that are no text at all.
    let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"version\":\"\xFF\"}".to_vec();
    let wire = Wire::start(scripts![[Act::ReadRequest, Act::Write(bytes), Act::Close]]);
    let error = hurried(&wire.url()).update(&update()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
}

#[test]
fn hostile_numbers_in_an_answer_bound_nothing_but_themselves() {
    // A login whose token lives for ever, for less than nothing, or for no number.
    for life in [
        "1e308",
        "-1e308",
        "18446744073709551616",
        "0",
        "\"soon\"",
        "[]",
        "null",
    ] {
        let body = format!("{{\"access_token\":\"token\",\"expires_in\":{life}}}");
        let wire = Wire::start(scripts![then(&[
            &[Act::ReadRequest, respond(200, &body)],
            &write_ok(),
            &kept(),
        ])]);
        let builder = builder_of(&wire.url(), Credentials::new("id", "secret"));
        let client = builder.build().unwrap();
        client
            .update(&direct())
            .unwrap_or_else(|e| panic!("{life}: {e}"));
    }
    // A pause for ever, for less than nothing, or for no number.
    for (pause, waits) in [
        ("99999999999999999999999999", None),
        ("31536000", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", None),
        ("-1", Some(1)),
        ("1e3", Some(1)),
        ("Thu, 01 Jan 1970 00:00:00 GMT", Some(1)),
        ("soon", Some(1)),
    ] {
        let slow = Act::Respond {
            status: 429,
            headers: vec![("Retry-After", pause.to_owned())],
            body: "{}".to_owned(),
        };
        let sent_again = match waits {
            Some(_) => write_ok().to_vec(),
            None => Vec::new(),
        };
        let wire = Wire::start(scripts![then(&[
            &[Act::ReadRequest, slow],
            &sent_again,
            &kept(),
        ])]);
        let clock = ManualClock::new();
        let client = builder(&wire.url()).clock(clock.clone()).build().unwrap();
        match (client.update(&direct()), waits) {
            (Ok(_), Some(waits)) => assert_eq!(clock.sleeps().len(), waits, "{pause}"),
            (Err(error), None) => {
                assert_eq!(error.kind(), ErrorKind::RateLimited, "{pause}");
                // Safe to add to any time.
                assert_eq!(
                    error.retry_after(),
                    Some(Duration::from_secs(86_400)),
                    "{pause}"
                );
            }
            (result, _) => panic!("{pause}: {result:?}"),
        }
    }
}
