//! A raw TCP server on loopback that plays one script per accepted connection.
//!
//! It exists for what no HTTP server library will do on purpose: half a head, a reset in the middle
//! of a body, an answer before the request was read. Nothing here sleeps: order between the test
//! and the server comes from [`Gate`], [`Wire::wait_requests`] and [`Wire::wait_closed`], and every
//! wait is bounded, so that a broken test fails instead of hanging.
//!
//! One file, since every step of a script shares the rules of closing that [`Act::Reset`] explains.

#![allow(dead_code)]

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The longest that a script waits for the client.
const IO_LIMIT: Duration = Duration::from_secs(30);
/// The longest that anybody waits at a gate.
const GATE_LIMIT: Duration = Duration::from_secs(60);
/// How long [`Wire::finish`] lets scripts write on before it cuts their connections.
const GRACE: Duration = Duration::from_secs(2);

/// One step of a script. A script that ends without `Close` or `Reset` closes its connection; a
/// step that fails ends the script and is listed in [`Report::errors`].
#[derive(Clone, Debug)]
pub enum Act {
    /// Reads one whole request, head and `Content-Length` body, and records it.
    ReadRequest,
    /// Reads up to and including the blank line and records that; the body stays unread.
    ReadHead,
    /// Reads exactly this many bytes, which are not recorded.
    ReadBytes(usize),
    /// A well-formed response in one write. `Content-Length` is added unless given; 1xx, 204 and
    /// 304 get neither length nor body.
    Respond {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: String,
    },
    /// Raw bytes in one write.
    Write(Vec<u8>),
    /// For big bodies. A write error is no failure, because the client may rightly give up on the
    /// way, but it ends the step.
    WriteRepeated { bytes: Vec<u8>, times: usize },
    /// Sends FIN and keeps the receiving side open.
    ShutdownWrite,
    /// Sends FIN, then closes. If the client has sent (or goes on to send) bytes that no step read,
    /// an RST follows that FIN, so the client meets `BrokenPipe` if it is still writing, and what
    /// was written before or the end of the stream if it is reading.
    Close,
    /// Sends RST and no FIN: the client meets `ConnectionReset`.
    ///
    /// `SO_LINGER` is not in stable std. Linux (like Windows, unlike the BSDs) also sends RST when
    /// a socket is closed whose receive queue is not empty, and that is what this uses: every
    /// reading step only *peeks* at its last byte, so that there is always a byte left over, and
    /// every other way to close takes that byte out first. On a connection that received nothing
    /// yet, this waits for a byte.
    Reset,
    /// Blocks until the test opens the gate.
    Wait(Gate),
    /// Reads until the client closes or resets. Bytes that follow a request read whole are an error
    /// (a request that the script did not expect) and end the wait, since the client would
    /// otherwise hang; the rest of a request read in part is discarded.
    WaitClientClose,
}

/// A JSON response.
pub fn respond(status: u16, body: &str) -> Act {
    Act::Respond {
        status,
        headers: vec![("Content-Type", "application/json".to_owned())],
        body: body.to_owned(),
    }
}

/// A loopback URL where nothing listens.
///
/// The port is the client end of a connection that lives as long as the process: a port that was
/// merely bound and dropped could be handed to another test's server in the meantime.
pub fn refused_url() -> String {
    static HELD: Mutex<Vec<(TcpStream, TcpStream)>> = Mutex::new(Vec::new());
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind to loopback");
    let there = listener.local_addr().expect("address of a listener");
    let client = TcpStream::connect(there).expect("connect to loopback");
    let (server, addr) = listener.accept().expect("accept on loopback");
    lock(&HELD).push((client, server));
    format!("http://{addr}")
}

/// A door between the test and a script; it starts closed, and once open it stays open. Clones are
/// the same door.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn new() -> Gate {
        Gate::default()
    }

    pub fn open(&self) {
        *lock(&self.0.0) = true;
        self.0.1.notify_all();
    }

    /// Blocks until the gate is open. Panics after 60 s.
    pub fn wait(&self) {
        assert!(
            self.wait_unless(|| false),
            "gate not opened for {GATE_LIMIT:?}"
        );
    }

    /// Whether the gate opened before time ran out or `given_up` turned true (which is looked at
    /// whenever somebody calls `nudge`).
    fn wait_unless(&self, given_up: impl Fn() -> bool) -> bool {
        let closed = |open: &mut bool| !*open && !given_up();
        let open = self
            .0
            .1
            .wait_timeout_while(lock(&self.0.0), GATE_LIMIT, closed);
        *open.unwrap_or_else(PoisonError::into_inner).0
    }

    fn nudge(&self) {
        // Under the lock, or the notice could fall between a waiter's look at its condition and its
        // going to sleep.
        let _open = lock(&self.0.0);
        self.0.1.notify_all();
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gate")
    }
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// Index of the connection in order of acceptance, which is also the index of its script.
    pub connection: usize,
    pub method: String,
    /// The request target: path and query.
    pub path: String,
    /// In the order sent, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Empty after [`Act::ReadHead`].
    pub body: Vec<u8>,
}

impl Received {
    /// The first header of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The body as JSON. Panics if it is not.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in the body of {self:?}"))
    }

    fn parse(connection: usize, head: &[u8]) -> Result<Received, String> {
        let head = String::from_utf8_lossy(head);
        let mut lines = head.trim_end_matches("\r\n").split("\r\n");
        let first: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
        let [method, path, "HTTP/1.1"] = first[..] else {
            return Err(format!("not a request line: {first:?}"));
        };
        let mut headers = Vec::new();
        for line in lines {
            let (name, value) = line
                .split_once(':')
                .ok_or(format!("not a header: {line:?}"))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok(Received {
            connection,
            method: method.to_owned(),
            path: path.to_owned(),
            headers,
            body: Vec::new(),
        })
    }

    fn body_len(&self) -> Result<usize, String> {
        match (
            self.header("transfer-encoding"),
            self.header("content-length"),
        ) {
            (Some(te), _) => Err(format!(
                "scripts cannot read a body with Transfer-Encoding: {te}"
            )),
            (None, None) => Ok(0),
            (None, Some(len)) => len.parse().map_err(|_| format!("Content-Length: {len}")),
        }
    }
}

/// What happened, once everything has stopped.
#[derive(Clone, Debug)]
pub struct Report {
    /// In order of arrival over all connections.
    pub requests: Vec<Received>,
    /// Accepted connections, those without a script included.
    pub connections: usize,
    /// Scripts that no connection came for.
    pub unplayed: usize,
    /// Steps that failed, each with its connection and step. A script that `finish` found waiting
    /// for a request or at a closed gate is among them; one found in `WaitClientClose` is not.
    pub errors: Vec<String>,
}

impl Report {
    /// Panics unless every script was played to its end by exactly one connection.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(self.errors.is_empty(), "scripts failed: {:#?}", self.errors);
        assert_eq!(self.unplayed, 0, "scripts left over");
    }
}

/// The server. See [`Wire::start`].
pub struct Wire {
    addr: SocketAddr,
    shared: Arc<Shared>,
    scripts: usize,
    gates: Vec<Gate>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stopping: AtomicBool,
    /// Source address of the connection that only wakes the acceptor. The stopping thread holds the
    /// lock while it connects.
    wake: Mutex<Option<SocketAddr>>,
}

#[derive(Default)]
struct State {
    requests: Vec<Received>,
    connections: usize,
    /// Sockets of running scripts. Shared by `Arc` and not by `try_clone`: a second descriptor
    /// would keep `Close` and `Reset` from reaching the wire.
    open: HashMap<usize, Arc<TcpStream>>,
    scripts: Vec<JoinHandle<()>>,
    errors: Vec<String>,
}

impl Wire {
    /// Listens on a free loopback port. The n-th accepted connection plays the n-th script on a
    /// thread of its own; once they are used up, further connections are accepted, counted, and
    /// closed at once.
    pub fn start(scripts: Vec<Vec<Act>>) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind to loopback");
        let gates = scripts.iter().flatten().filter_map(|act| match act {
            Act::Wait(gate) => Some(gate.clone()),
            _ => None,
        });
        let shared = Arc::new(Shared::default());
        Wire {
            addr: listener.local_addr().expect("address of a listener"),
            scripts: scripts.len(),
            gates: gates.collect(),
            shared: Arc::clone(&shared),
            acceptor: Some(thread::spawn(move || accept(&listener, scripts, &shared))),
        }
    }

    /// Without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The requests so far, in order of arrival over all connections.
    pub fn requests(&self) -> Vec<Received> {
        self.shared.state().requests.clone()
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.state().connections
    }

    /// Blocks until at least `n` requests are recorded. Panics after 30 s.
    #[track_caller]
    pub fn wait_requests(&self, n: usize) {
        self.wait_for(IO_LIMIT, |s| s.requests.len() >= n)
            .expect("no such request came");
    }

    /// Blocks until the n-th connection (from 0) was accepted and closed again by its script: from
    /// then on the client's next look at its socket finds it closed. Panics after 30 s.
    #[track_caller]
    pub fn wait_closed(&self, n: usize) {
        let closed = |s: &State| s.connections > n && !s.open.contains_key(&n);
        self.wait_for(IO_LIMIT, closed)
            .expect("connection not closed");
    }

    /// Stops accepting, lets scripts write what they still can, joins all threads and reports.
    /// Scripts that wait for bytes from the client find the end of the stream, so this does not
    /// need the client to drop its pooled connections first.
    pub fn finish(mut self) -> Report {
        self.stop(Shutdown::Read);
        let mut state = self.shared.state();
        Report {
            requests: std::mem::take(&mut state.requests),
            connections: state.connections,
            unplayed: self.scripts.saturating_sub(state.connections),
            errors: std::mem::take(&mut state.errors),
        }
    }

    fn wait_for(&self, limit: Duration, done: impl Fn(&State) -> bool) -> Result<(), &'static str> {
        let waited = self
            .shared
            .changed
            .wait_timeout_while(self.shared.state(), limit, |s| !done(s));
        match waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
            true => Err("waited in vain"),
            false => Ok(()),
        }
    }

    fn stop(&mut self, how: Shutdown) {
        let Some(acceptor) = self.acceptor.take() else {
            return;
        };
        {
            let mut wake = lock(&self.shared.wake);
            self.shared.stopping.store(true, Ordering::SeqCst);
            // With a limit, since a full backlog is drained by the acceptor, which may be waiting
            // for this lock.
            *wake = TcpStream::connect_timeout(&self.addr, Duration::from_secs(1))
                .and_then(|s| s.local_addr())
                .ok();
        }
        let _ = acceptor.join();
        self.gates.iter().for_each(Gate::nudge);
        self.shared.shutdown(how);
        if how == Shutdown::Read {
            let _ = self.wait_for(GRACE, |s| s.open.is_empty());
            self.shared.shutdown(Shutdown::Both);
        }
        let scripts = std::mem::take(&mut self.shared.state().scripts);
        for script in scripts {
            let _ = script.join();
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop(Shutdown::Both);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn shutdown(&self, how: Shutdown) {
        for stream in self.state().open.values() {
            let _ = stream.shutdown(how);
        }
    }

    fn fail(&self, error: String) {
        self.state().errors.push(error);
    }
}

fn accept(listener: &TcpListener, scripts: Vec<Vec<Act>>, shared: &Arc<Shared>) {
    let mut scripts = scripts.into_iter();
    loop {
        let (stream, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(e) => return shared.fail(format!("accept: {e}")),
        };
        // The backlog is a queue: up to the waking connection, whatever connected before `stop` is
        // still counted and served.
        if shared.stopping() && lock(&shared.wake).is_none_or(|wake| wake == peer) {
            return;
        }
        let mut state = shared.state();
        let number = state.connections;
        state.connections += 1;
        if let Some(script) = scripts.next() {
            let stream = Arc::new(stream);
            state.open.insert(number, Arc::clone(&stream));
            let shared = Arc::clone(shared);
            state
                .scripts
                .push(thread::spawn(move || play(number, stream, script, &shared)));
        } else {
            let _ = stream.shutdown(Shutdown::Both);
            drop(stream);
        }
        drop(state);
        shared.changed.notify_all();
    }
}

fn play(number: usize, stream: Arc<TcpStream>, script: Vec<Act>, shared: &Shared) {
    let mut connection = Connection {
        number,
        stream,
        shared,
        owed: false,
        partial: true,
    };
    let mut reset = false;
    if let Err(e) = connection.set_up() {
        shared.fail(format!("connection {number}: {e}"));
    }
    for (step, act) in script.into_iter().enumerate() {
        let name = act.name();
        let ends = matches!(act, Act::Close | Act::Reset);
        match connection.act(act) {
            Ok(()) if ends => {
                reset = name == "Reset";
                break;
            }
            Ok(()) => {}
            Err(e) => {
                let when = if shared.stopping() {
                    " (cut short by the end of the test)"
                } else {
                    ""
                };
                shared.fail(format!(
                    "connection {number}, step {step}, {name}: {e}{when}"
                ));
                break;
            }
        }
    }
    if !reset {
        let _ = connection.settle();
        let _ = connection.stream.shutdown(Shutdown::Both);
    }
    let Connection { stream, .. } = connection;
    let mut state = shared.state();
    let registered = state.open.remove(&number);
    // Closed under the lock, so that nobody who sees the entry gone can still find the socket open.
    drop((registered, stream));
    drop(state);
    shared.changed.notify_all();
}

struct Connection<'a> {
    number: usize,
    stream: Arc<TcpStream>,
    shared: &'a Shared,
    /// The last byte read is still in the receive queue, for the sake of `Reset`.
    owed: bool,
    /// More of a request may follow that no step asked for.
    partial: bool,
}

impl Act {
    fn name(&self) -> &'static str {
        match self {
            Act::ReadRequest => "ReadRequest",
            Act::ReadHead => "ReadHead",
            Act::ReadBytes(_) => "ReadBytes",
            Act::Respond { .. } => "Respond",
            Act::Write(_) => "Write",
            Act::WriteRepeated { .. } => "WriteRepeated",
            Act::ShutdownWrite => "ShutdownWrite",
            Act::Close => "Close",
            Act::Reset => "Reset",
            Act::Wait(_) => "Wait",
            Act::WaitClientClose => "WaitClientClose",
        }
    }
}

impl Connection<'_> {
    fn set_up(&self) -> io::Result<()> {
        self.stream.set_nodelay(true)?;
        self.stream.set_read_timeout(Some(IO_LIMIT))?;
        self.stream.set_write_timeout(Some(IO_LIMIT))
    }

    fn act(&mut self, act: Act) -> Result<(), String> {
        match act {
            Act::ReadRequest => {
                let mut request = self.read_head()?;
                request.body = vec![0; request.body_len()?];
                self.read_exact(&mut request.body)?;
                self.partial = false;
                self.record(request);
            }
            Act::ReadHead => {
                let request = self.read_head()?;
                self.partial = request.body_len() != Ok(0);
                self.record(request);
            }
            Act::ReadBytes(n) => {
                self.partial = true;
                self.read_exact(&mut vec![0; n])?;
            }
            Act::Respond {
                status,
                headers,
                body,
            } => {
                self.write(&response(status, &headers, &body))
                    .map_err(text)?;
            }
            Act::Write(bytes) => self.write(&bytes).map_err(text)?,
            Act::WriteRepeated { bytes, times } => {
                let _ = (0..times).try_for_each(|_| self.write(&bytes));
            }
            Act::ShutdownWrite => self.stream.shutdown(Shutdown::Write).map_err(text)?,
            Act::Close => {}
            Act::Reset if self.owed => {}
            Act::Reset => {
                self.peek(&mut [0])?;
            }
            Act::Wait(gate) => {
                if !gate.wait_unless(|| self.shared.stopping()) {
                    return Err("the gate was not opened".to_owned());
                }
            }
            Act::WaitClientClose => self.wait_client_close()?,
        }
        Ok(())
    }

    fn record(&self, request: Received) {
        self.shared.state().requests.push(request);
        self.shared.changed.notify_all();
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        (&*self.stream).write_all(bytes)
    }

    /// Takes the byte out of the receive queue that the last reading step left there.
    fn settle(&mut self) -> Result<(), String> {
        if std::mem::take(&mut self.owed) {
            (&*self.stream).read_exact(&mut [0]).map_err(text)?;
        }
        Ok(())
    }

    /// At least one byte, which stays in the queue.
    fn peek(&self, buf: &mut [u8]) -> Result<usize, String> {
        match self.stream.peek(buf) {
            Ok(0) => Err("the client closed".to_owned()),
            Ok(n) => Ok(n),
            Err(e) => Err(text(e)),
        }
    }

    fn read_exact(&mut self, buf: &mut [u8]) -> Result<(), String> {
        let Some(last) = buf.len().checked_sub(1) else {
            return Ok(());
        };
        self.settle()?;
        (&*self.stream).read_exact(&mut buf[..last]).map_err(text)?;
        self.peek(&mut buf[last..])?;
        self.owed = true;
        Ok(())
    }

    fn read_head(&mut self) -> Result<Received, String> {
        self.settle()?;
        self.partial = true;
        let mut head = Vec::new();
        let mut buf = [0; 4096];
        loop {
            let n = self
                .peek(&mut buf)
                .map_err(|e| format!("{e} after {} bytes of a head", head.len()))?;
            let known = head.len();
            head.extend_from_slice(&buf[..n]);
            let from = known.saturating_sub(3);
            let Some(at) = head[from..].windows(4).position(|w| w == b"\r\n\r\n") else {
                // None of these is the last byte of the head, so that they can go, and the next
                // peek blocks instead of spinning.
                (&*self.stream).read_exact(&mut buf[..n]).map_err(text)?;
                continue;
            };
            head.truncate(from + at + 4);
            let rest = head.len() - known;
            (&*self.stream)
                .read_exact(&mut buf[..rest - 1])
                .map_err(text)?;
            self.owed = true;
            return Received::parse(self.number, &head);
        }
    }

    fn wait_client_close(&mut self) -> Result<(), String> {
        self.settle()?;
        let mut buf = vec![0; 64 * 1024];
        loop {
            match (&*self.stream).read(&mut buf) {
                Ok(0) => return Ok(()),
                Ok(_) if self.partial => {}
                Ok(n) => {
                    return Err(format!(
                        "the client sent {n} bytes more: {:?}",
                        String::from_utf8_lossy(&buf[..n])
                    ));
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if timed_out(&e) => return Err(text(e)),
                Err(_) => return Ok(()),
            }
        }
    }
}

fn response(status: u16, headers: &[(&'static str, String)], body: &str) -> Vec<u8> {
    let mut out = format!("HTTP/1.1 {status} Scripted\r\n");
    for (name, value) in headers {
        out += &format!("{name}: {value}\r\n");
    }
    let bodiless = status < 200 || status == 204 || status == 304;
    if !bodiless
        && !headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("content-length"))
    {
        out += &format!("Content-Length: {}\r\n", body.len());
    }
    out += "\r\n";
    if !bodiless {
        out += body;
    }
    out.into_bytes()
}

fn timed_out(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

fn text(e: io::Error) -> String {
    match e.kind() {
        _ if timed_out(&e) => format!("nothing moved for {IO_LIMIT:?}"),
        io::ErrorKind::UnexpectedEof => "the client closed".to_owned(),
        _ => e.to_string(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
