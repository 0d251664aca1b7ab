use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// What the server does with one request.
#[derive(Debug)]
pub(crate) enum Reply {
    Whole {
        status: u16,
        body: String,
    },
    /// Closes the connection in the middle of the answer.
    Cut,
    /// Never answers; waits until the client hangs up.
    Silence,
}

impl Reply {
    pub(crate) fn json(status: u16, body: &serde_json::Value) -> Self {
        Self::raw(status, body.to_string())
    }

    pub(crate) fn raw(status: u16, body: impl Into<String>) -> Self {
        Self::Whole { status, body: body.into() }
    }
}

#[derive(Debug, Default)]
struct State {
    replies: VecDeque<Reply>,
    requests: usize,
    last: serde_json::Value,
    authorization: Option<String>,
    hang_ups: usize,
}

type Shared = Arc<(Mutex<State>, Condvar)>;

/// A server on loopback that gives its answers in order, each once. Its threads end with the connections.
pub(crate) struct Script {
    address: SocketAddr,
    shared: Shared,
}

impl Script {
    pub(crate) fn of<const N: usize>(replies: [Reply; N]) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), replies)
    }

    /// The same at an address.
    pub(crate) fn at<const N: usize>(address: SocketAddr, replies: [Reply; N]) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Shared::default();
        let of_thread = shared.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let shared = of_thread.clone();
                std::thread::spawn(move || _ = serve(connection.unwrap(), &shared));
            }
        });
        let script = Self { address, shared };
        script.then(replies);
        script
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub(crate) fn then<const N: usize>(&self, replies: [Reply; N]) {
        self.shared.0.lock().unwrap().replies.extend(replies);
    }

    pub(crate) fn requests(&self) -> usize {
        self.shared.0.lock().unwrap().requests
    }

    /// Body of the last request.
    pub(crate) fn last(&self) -> serde_json::Value {
        self.shared.0.lock().unwrap().last.clone()
    }

    pub(crate) fn authorization(&self) -> Option<String> {
        self.shared.0.lock().unwrap().authorization.clone()
    }

    pub(crate) fn wait_for_hang_up(&self) {
        let state = self.shared.0.lock().unwrap();
        let waited = self
            .shared
            .1
            .wait_timeout_while(state, Duration::from_secs(20), |state| state.hang_ups == 0)
            .unwrap();
        assert!(!waited.1.timed_out(), "the client is still connected");
    }
}

fn serve(connection: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut writer = connection;
    loop {
        let mut length = 0;
        let mut authorization = None;
        let mut first = true;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end();
            if line.is_empty() && !first {
                break;
            }
            first = false;
            if let Some((name, value)) = line.split_once(':') {
                match name.to_ascii_lowercase().as_str() {
                    "content-length" => length = value.trim().parse().unwrap(),
                    "authorization" => authorization = Some(value.trim().to_owned()),
                    _ => {}
                }
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let reply = {
            let mut state = shared.0.lock().unwrap();
            state.requests += 1;
            state.last = serde_json::from_slice(&body).unwrap_or_default();
            state.authorization = authorization;
            state.replies.pop_front().unwrap_or(Reply::raw(500, "the script has ended"))
        };
        match reply {
            Reply::Whole { status, body } => {
                write!(writer, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
            }
            Reply::Cut => {
                write!(writer, "HTTP/1.1 200 X\r\ncontent-length: 100\r\n\r\n{{\"choi")?;
                return Ok(());
            }
            Reply::Silence => {
                let _ = reader.read(&mut [0]);
                shared.0.lock().unwrap().hang_ups += 1;
                shared.1.notify_all();
                return Ok(());
            }
        }
    }
}
