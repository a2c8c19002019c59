//! The platform behind HTTP/1.1, on a port of this machine: one thread for each connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

use super::Platform;
use super::platform::{Answer, Call, Reply};
use crate::util::clock::{Clock, SystemClock};
use crate::util::sync::lock;

/// The longest head or body that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// A [`Platform`] that listens on a port of this machine, until this is dropped.
///
/// ```
/// use genesys_attributes::testing::Platform;
///
/// let platform = Platform::new();
/// platform.add_conversation("c-1");
/// let server = platform.serve(0)?;
/// assert!(server.url().starts_with("http://127.0.0.1:"));
/// # Ok::<(), std::io::Error>(())
/// ```
#[must_use = "the server ends when it is dropped"]
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    open: Arc<Mutex<Open>>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Open {
    stopping: bool,
    connections: Vec<Weak<TcpStream>>,
}

impl Server {
    pub(super) fn start(platform: Platform, port: u16) -> io::Result<Server> {
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        let address = listener.local_addr()?;
        let open = Arc::<Mutex<Open>>::default();
        let theirs = open.clone();
        let acceptor = std::thread::spawn(move || accept(&listener, &platform, &theirs));
        Ok(Server {
            address,
            open,
            acceptor: Some(acceptor),
        })
    }

    /// The base of the API and of the login alike, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        lock(&self.open).stopping = true;
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.address);
        let _ = self.acceptor.take().map(JoinHandle::join);
        for stream in lock(&self.open)
            .connections
            .iter()
            .filter_map(Weak::upgrade)
        {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn accept(listener: &TcpListener, platform: &Platform, open: &Mutex<Open>) {
    let start = SystemClock.now();
    while let Ok((stream, _)) = listener.accept() {
        let stream = Arc::new(stream);
        let mut open = lock(open);
        if open.stopping {
            return;
        }
        open.connections.retain(|other| other.strong_count() > 0);
        open.connections.push(Arc::downgrade(&stream));
        let platform = platform.clone();
        std::thread::spawn(move || {
            let _ = serve(&stream, &platform, start);
            let _ = stream.shutdown(Shutdown::Both);
        });
    }
}

/// Answers the requests of a connection in turn.
fn serve(mut stream: &TcpStream, platform: &Platform, start: Instant) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = BufReader::new(stream);
    loop {
        let mut head = String::new();
        let mut limited = input.by_ref().take(LONGEST);
        while limited.read_line(&mut head)? > 0 && !head.ends_with("\r\n\r\n") {}
        let mut lines = head.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (Some(method), Some(target), Some("HTTP/1.1")) =
            (words.next(), words.next(), words.next())
        else {
            return Ok(());
        };
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = Vec::from_iter(headers.map(|(name, value)| (name, value.trim())));
        let of = |wanted: &str| {
            let found = headers
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(wanted));
            found.map(|(_, value)| *value)
        };
        if of("expect").is_some() {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        // A chunked body is read as none, and then as a request that ends the connection.
        let length = of("content-length").map_or(Ok(0), str::parse::<u64>);
        let length = length.map_err(|_| io::ErrorKind::InvalidData)?.min(LONGEST);
        let mut body = Vec::new();
        input.by_ref().take(length).read_to_end(&mut body)?;
        let at = SystemClock.now().saturating_duration_since(start);
        let call = Call::new(method, target, headers.iter().copied(), &body, at);
        let (reply, latency) = platform.handle(&call);
        SystemClock.sleep(latency);
        let Reply::Answer(answer) = reply else {
            return Ok(());
        };
        stream.write_all(&written(&answer))?;
        if of("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            return Ok(());
        }
    }
}

fn written(answer: &Answer) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {} Status\r\n", answer.status);
    for (name, value) in answer.headers() {
        text += &format!("{name}: {value}\r\n");
    }
    if answer.status != 204 && answer.status != 304 {
        text += &format!("Content-Length: {}\r\n", answer.body.len());
    }
    text += "\r\n";
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(&answer.body);
    bytes
}
