//! A small, fast keep-alive HTTP/1.1 server on loopback, driven by a closure: for benchmarks, races
//! and batches. Faults belong in `wire.rs`.
//!
//! One thread per connection, one read and one write per request, and no allocation besides what
//! the handler makes: what a benchmark measures should be the client.

#![allow(dead_code)]

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long dropping a server waits for handlers that are still running.
const DROP_LIMIT: Duration = Duration::from_secs(5);
/// Heads and bodies above this are a bug in the client under test.
const MAX_REQUEST: usize = 64 << 20;

/// A request, borrowed from the buffer of its connection.
#[derive(Clone, Copy, Debug)]
pub struct Req<'a> {
    /// Index of the connection in order of acceptance.
    pub connection: usize,
    pub method: &'a str,
    /// The request target: path and query.
    pub path: &'a str,
    pub body: &'a [u8],
    /// When its last byte had been read.
    pub at: Instant,
    fields: &'a str,
}

impl<'a> Req<'a> {
    /// The first header of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        let found = self.headers().find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value)
    }

    /// Names as sent, in the order sent.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let lines = self
            .fields
            .split("\r\n")
            .filter_map(|line| line.split_once(':'));
        lines.map(|(name, value)| (name, value.trim()))
    }

    /// The body as JSON. Panics if it is not.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(self.body).unwrap_or_else(|e| panic!("{e} in the body of {self:?}"))
    }
}

/// What the handler answers.
#[derive(Clone, Debug)]
pub struct Resp {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Option<String>,
    delay: Duration,
    reset: bool,
}

impl Resp {
    /// The media type is JSON unless a header says otherwise.
    pub fn json(status: u16, body: impl Into<String>) -> Resp {
        Resp {
            body: Some(body.into()),
            ..Resp::empty(status)
        }
    }

    /// No body: `Content-Length: 0`, or none at all for 1xx, 204 and 304.
    pub fn empty(status: u16) -> Resp {
        Resp {
            status,
            headers: Vec::new(),
            body: None,
            delay: Duration::ZERO,
            reset: false,
        }
    }

    /// Closes the connection without an answer. The request was read whole, so the client sees the
    /// end of the stream (FIN), not an RST.
    pub fn reset() -> Resp {
        Resp {
            reset: true,
            ..Resp::empty(0)
        }
    }

    /// `Connection: close` is obeyed.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Resp {
        self.headers.push((name, value.into()));
        self
    }

    /// Server latency: the answer goes out this much later. The handler has returned by then.
    pub fn delay(mut self, delay: Duration) -> Resp {
        self.delay = delay;
        self
    }

    fn closes(&self) -> bool {
        self.value("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    fn value(&self, name: &str) -> Option<&str> {
        let mut named = self.headers.iter();
        let found = named.find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    fn write_to(&self, out: &mut Vec<u8>) -> io::Result<()> {
        write!(out, "HTTP/1.1 {} Status\r\n", self.status)?;
        for (name, value) in &self.headers {
            write!(out, "{name}: {value}\r\n")?;
        }
        if self.status < 200 || self.status == 204 || self.status == 304 {
            return out.write_all(b"\r\n");
        }
        if self.body.is_some() && self.value("content-type").is_none() {
            out.write_all(b"Content-Type: application/json\r\n")?;
        }
        let body = self.body.as_deref().unwrap_or_default();
        write!(out, "Content-Length: {}\r\n\r\n{body}", body.len())
    }
}

/// The server. See [`Server::start`].
pub struct Server {
    addr: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    connections: AtomicUsize,
    requests: AtomicUsize,
    bytes: AtomicU64,
    panics: AtomicUsize,
}

#[derive(Default)]
struct State {
    stopping: bool,
    /// By `Arc` and not by `try_clone`: with a second descriptor, a connection that its thread
    /// drops would stay open.
    open: HashMap<usize, Arc<TcpStream>>,
}

impl Server {
    /// Listens on a free loopback port and answers every request with what the handler returns.
    /// Requests on one connection are served in turn, connections in parallel.
    pub fn start(handler: impl Fn(&Req) -> Resp + Send + Sync + 'static) -> Server {
        Server::start_on(0, handler).expect("bind to loopback")
    }

    /// As [`Server::start`], on this port. An error says that it is taken.
    pub fn start_on(
        port: u16,
        handler: impl Fn(&Req) -> Resp + Send + Sync + 'static,
    ) -> io::Result<Server> {
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let acceptor = thread::spawn(move || accept(&listener, &Arc::new(handler), &theirs));
        Ok(Server {
            addr,
            shared,
            acceptor: Some(acceptor),
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.addr
    }

    /// Without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Requests read whole so far, whatever became of them.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// Bytes received so far on all connections.
    pub fn bytes_received(&self) -> u64 {
        self.shared.bytes.load(Ordering::SeqCst)
    }

    /// Handlers that panicked (a failed assertion, say). The client saw its connection closed.
    pub fn panics(&self) -> usize {
        self.shared.panics.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    /// Closes the listener and all connections and waits for their threads; a handler that still
    /// blocks after 5 s is left behind.
    fn drop(&mut self) {
        self.shared.state().stopping = true;
        self.shared.changed.notify_all();
        // Wakes the acceptor; if nobody is listening any more, there is nothing to wake.
        let _ = TcpStream::connect_timeout(&self.addr, Duration::from_secs(1));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        let state = self.shared.state();
        for stream in state.open.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, DROP_LIMIT, |s| !s.open.is_empty());
        drop(waited);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps, but wakes up when the server is dropped.
    fn sleep(&self, delay: Duration) {
        let end = Instant::now() + delay;
        let mut state = self.state();
        while !state.stopping {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

fn accept<H>(listener: &TcpListener, handler: &Arc<H>, shared: &Arc<Shared>)
where
    H: Fn(&Req) -> Resp + Send + Sync + 'static,
{
    // Ends on an error as well: out of descriptors, the next attempt would fail the same way.
    while let Ok((stream, _)) = listener.accept() {
        let mut state = shared.state();
        if state.stopping {
            return;
        }
        let number = shared.connections.fetch_add(1, Ordering::SeqCst);
        let stream = Arc::new(stream);
        state.open.insert(number, Arc::clone(&stream));
        drop(state);
        let (handler, shared) = (Arc::clone(handler), Arc::clone(shared));
        thread::spawn(move || {
            let open = Open {
                number,
                stream,
                shared,
            };
            let _ = serve(&open, &*handler);
        });
    }
}

/// Takes the connection off the list however its thread ends.
struct Open {
    number: usize,
    stream: Arc<TcpStream>,
    shared: Arc<Shared>,
}

impl Drop for Open {
    fn drop(&mut self) {
        if thread::panicking() {
            self.shared.panics.fetch_add(1, Ordering::SeqCst);
        }
        let _ = self.stream.shutdown(Shutdown::Both);
        self.shared.state().open.remove(&self.number);
        self.shared.changed.notify_all();
    }
}

fn serve(open: &Open, handler: &dyn Fn(&Req) -> Resp) -> io::Result<()> {
    let shared = &*open.shared;
    let mut stream = &*open.stream;
    stream.set_nodelay(true)?;
    let mut input = Input {
        stream,
        bytes: &shared.bytes,
        buf: vec![0; 16 * 1024],
        filled: 0,
    };
    let mut out = Vec::with_capacity(4096);
    loop {
        let mut seen = 0;
        let head = loop {
            if let Some(at) = find_blank_line(&input.buf[seen..input.filled]) {
                break seen + at;
            }
            seen = input.filled.saturating_sub(3);
            if !input.fill()? {
                return Ok(());
            }
        };
        let length = content_length(&input.buf[..head])?;
        let end = head + 4 + length;
        while input.filled < end {
            if !input.fill()? {
                return Ok(());
            }
        }
        shared.requests.fetch_add(1, Ordering::SeqCst);
        let req = parse(open.number, &input.buf[..head], &input.buf[head + 4..end])?;
        let resp = handler(&req);
        let closes = resp.closes()
            || req
                .header("connection")
                .is_some_and(|v| v.eq_ignore_ascii_case("close"));
        if !resp.delay.is_zero() {
            shared.sleep(resp.delay);
        }
        if resp.reset {
            return Ok(());
        }
        out.clear();
        resp.write_to(&mut out)?;
        stream.write_all(&out)?;
        if closes {
            return Ok(());
        }
        input.buf.copy_within(end..input.filled, 0);
        input.filled -= end;
    }
}

struct Input<'a> {
    stream: &'a TcpStream,
    bytes: &'a AtomicU64,
    buf: Vec<u8>,
    filled: usize,
}

impl Input<'_> {
    /// Reads more; false at the end of the stream.
    fn fill(&mut self) -> io::Result<bool> {
        if self.filled == self.buf.len() {
            if self.filled >= MAX_REQUEST {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.buf.resize(2 * self.filled, 0);
        }
        let n = self.stream.read(&mut self.buf[self.filled..])?;
        self.filled += n;
        self.bytes.fetch_add(n as u64, Ordering::SeqCst);
        Ok(n > 0)
    }
}

fn find_blank_line(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|w| w == b"\r\n\r\n")
}

/// Of a head without its blank line. Chunked bodies are an error, which closes the connection: the
/// clients under test know their lengths.
fn content_length(head: &[u8]) -> io::Result<usize> {
    let mut length = 0;
    for line in head.split(|b| *b == b'\n') {
        let Some(colon) = line.iter().position(|b| *b == b':') else {
            continue;
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            length = std::str::from_utf8(value)
                .ok()
                .and_then(|v| v.parse().ok())
                .ok_or(io::ErrorKind::InvalidData)?;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            return Err(io::ErrorKind::Unsupported.into());
        }
    }
    Ok(length)
}

fn parse<'a>(connection: usize, head: &'a [u8], body: &'a [u8]) -> io::Result<Req<'a>> {
    let head = std::str::from_utf8(head).map_err(|_| io::ErrorKind::InvalidData)?;
    let (first, fields) = head.split_once("\r\n").unwrap_or((head, ""));
    let mut words = first.split(' ');
    match (words.next(), words.next(), words.next()) {
        (Some(method), Some(path), Some("HTTP/1.1")) => Ok(Req {
            connection,
            method,
            path,
            body,
            at: Instant::now(),
            fields,
        }),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
