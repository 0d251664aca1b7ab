use std::net::SocketAddr;

use thicket_discovery::Address;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Most bytes that are on the way at a time in one direction.
const WINDOW: usize = 16 << 10;

/// A way to a server that can be cut, fall silent and be mended.
pub(crate) struct Proxy {
    pub(crate) address: Address,
    state: watch::Sender<State>,
    accepting: JoinHandle<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// Nothing arrives in either direction, and nobody is told.
    Silent,
    /// Whoever comes is turned away.
    Cut,
}

impl Proxy {
    /// A way to `http://host:port`.
    pub(crate) async fn to(url: &str) -> Self {
        let target: SocketAddr = url.trim_start_matches("http://").parse().unwrap();
        let listener = TcpListener::bind((crate::etcd::ip(), 0)).await.unwrap();
        let address = Address::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let (state, now) = watch::channel(State::Open);
        let accepting = tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                if *now.borrow() != State::Cut {
                    tokio::spawn(carry(from, target, now.clone()));
                }
            }
        });
        Self { address, state, accepting }
    }

    /// Ends every connection, and each new one at once.
    pub(crate) fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    /// Holds back what is sent, in both directions, as a network does that loses every packet: connections stay, new ones are
    /// never answered. What was held back arrives late, when the way is mended.
    pub(crate) fn fall_silent(&self) {
        self.state.send_replace(State::Silent);
    }

    pub(crate) fn mend(&self) {
        self.state.send_replace(State::Open);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn carry(mut from: TcpStream, target: SocketAddr, state: watch::Receiver<State>) {
    let both = async {
        speaks(&mut state.clone()).await;
        let Ok(mut to) = TcpStream::connect(target).await else { return };
        let (mut from_reader, mut from_writer) = from.split();
        let (mut to_reader, mut to_writer) = to.split();
        tokio::join!(
            pass(&mut from_reader, &mut to_writer, state.clone()),
            pass(&mut to_reader, &mut from_writer, state.clone())
        );
    };
    let mut state = state.clone();
    tokio::select! {
        () = both => {}
        _ = state.wait_for(|state| *state == State::Cut) => {}
    }
}

/// Waits for as long as nothing gets through.
async fn speaks(state: &mut watch::Receiver<State>) {
    // Where the proxy has gone, what is under way may end by itself.
    let _ = state.wait_for(|state| *state != State::Silent).await;
}

/// Passes on what comes from one side, and its end.
async fn pass(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut state: watch::Receiver<State>,
) {
    let mut bytes = vec![0; WINDOW];
    loop {
        let count = from.read(&mut bytes).await.unwrap_or(0);
        speaks(&mut state).await;
        if count == 0 || to.write_all(&bytes[..count]).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
    }
}
