//! One trace spans a search through processes of their own, as a collector sees it.

use std::collections::{BTreeSet, HashMap};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use thicket_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use thicket_proto::v1::search_person_response::Event;
use thicket_proto::v1::{
    IngestRequest, InteractionSettings, SearchFinished, SearchPersonRequest, ingest_response,
};
use thicket_runtime::Role;
use thicket_tests::goldens;
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::person_search::picture;

/// Long enough for any machine; nothing waits for its end.
const LIMIT: Duration = Duration::from_secs(90);
const COLLECTION: &str = "lobby";
const ITEMS: u8 = 6;
const ROUNDS: u32 = 4;

struct Collector(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let _ = self.0.send(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

/// A role that is killed with the test.
struct Running(Child);

impl Running {
    fn start(role: Role, address: SocketAddr, collector: &str, log: &Path, flags: &[&str]) -> Self {
        let folder = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned();
        let program = folder.join(role.service_name());
        assert!(
            program.is_file(),
            "{} is not built: run the tests of the whole workspace",
            program.display()
        );
        let log = std::fs::File::create(log).unwrap();
        let child = Command::new(program)
            .args(["--listen", &address.to_string(), "--admin-listen", "127.0.0.1:0", "--drain-delay", "0s"])
            .args(["--otlp-endpoint", collector])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Has it drain, which sends every span that it still holds.
    fn drain(&mut self) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert_eq!(self.0.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One span, and which service it is of.
struct Spanned {
    service: String,
    name: String,
    trace: Vec<u8>,
    parent: Vec<u8>,
    attributes: Vec<KeyValue>,
}

impl Spanned {
    fn integer(&self, name: &str) -> Option<i64> {
        match attribute(&self.attributes, name)? {
            Value::IntValue(value) => Some(*value),
            _ => None,
        }
    }
}

fn attribute<'a>(attributes: &'a [KeyValue], name: &str) -> Option<&'a Value> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    found.value.as_ref()?.value.as_ref()
}

/// Spans by their ids.
struct Spans(HashMap<Vec<u8>, Spanned>);

impl Spans {
    /// What has come by now.
    fn take(received: &mut mpsc::UnboundedReceiver<ExportTraceServiceRequest>) -> Self {
        let mut spans = HashMap::new();
        while let Ok(batch) = received.try_recv() {
            for resource in batch.resource_spans {
                let attributes = resource.resource.unwrap_or_default().attributes;
                let service = match attribute(&attributes, "service.name") {
                    Some(Value::StringValue(service)) => service.clone(),
                    other => panic!("a service without a name: {other:?}"),
                };
                for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                    let spanned = Spanned {
                        service: service.clone(),
                        name: span.name,
                        trace: span.trace_id,
                        parent: span.parent_span_id,
                        attributes: span.attributes,
                    };
                    assert!(spans.insert(span.span_id, spanned).is_none(), "a span came twice");
                }
            }
        }
        Self(spans)
    }

    fn named(&self, name: &str) -> impl Iterator<Item = (&Vec<u8>, &Spanned)> {
        self.0.iter().filter(move |(_, span)| span.name == name)
    }

    /// The spans of a trace.
    fn of<'a>(&'a self, trace: &'a [u8]) -> impl Iterator<Item = (&'a Vec<u8>, &'a Spanned)> {
        self.0.iter().filter(move |(_, span)| span.trace == trace)
    }

    /// Whether a span is another, or below it.
    fn is_below(&self, span: &[u8], above: &[u8]) -> bool {
        let mut at = span;
        while at != above {
            match self.0.get(at) {
                Some(span) => at = &span.parent,
                None => return false,
            }
        }
        true
    }

    fn parent_of(&self, span: &Spanned) -> &Spanned {
        self.0.get(&span.parent).unwrap_or_else(|| panic!("{} has no parent here", span.name))
    }
}

/// Addresses that were free a moment ago.
fn free_addresses<const N: usize>() -> [SocketAddr; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap())
}

async fn serves(address: SocketAddr, log: &Path) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
    let began = Instant::now();
    loop {
        if let Ok(channel) = endpoint.connect().await {
            let asked = HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await;
            if asked.is_ok_and(|answer| answer.into_inner().status() == ServingStatus::Serving) {
                return channel;
            }
        }
        let said = || std::fs::read_to_string(log).unwrap_or_default();
        assert!(began.elapsed() < LIMIT, "{address} does not serve:\n{}", said());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn ingest(coordinator: &mut CoordinatorServiceClient<Channel>) {
    let items = (0..ITEMS).map(|index| IngestRequest {
        collection: COLLECTION.into(),
        id: format!("item-{index}"),
        image: picture(index).into(),
        ..Default::default()
    });
    let items = tokio_stream::iter(items.collect::<Vec<_>>());
    let mut results = coordinator.ingest(items).await.unwrap().into_inner();
    let mut stored = 0;
    while let Some(result) = results.message().await.unwrap() {
        stored += u8::from(matches!(result.result, Some(ingest_response::Result::Item(_))));
    }
    assert_eq!(stored, ITEMS);
}

/// A search on behalf of a span of the caller's, `traceparent` in W3C's form.
async fn search(
    coordinator: &mut CoordinatorServiceClient<Channel>,
    traceparent: &str,
    xi: f32,
    yes_threshold: f64,
) -> SearchFinished {
    let settings = InteractionSettings {
        rounds: Some(ROUNDS),
        xi: Some(xi),
        yes_threshold: Some(yes_threshold),
        ..Default::default()
    };
    let mut request = Request::new(SearchPersonRequest {
        collection: COLLECTION.into(),
        text: "a person in a red coat".into(),
        top: 5,
        settings: Some(settings),
        ..Default::default()
    });
    request.set_timeout(LIMIT);
    request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    let mut stream = coordinator.search_person(request).await.unwrap().into_inner();
    let mut last = None;
    while let Some(response) = stream.message().await.unwrap() {
        last = response.event;
    }
    match last {
        Some(Event::Finished(finished)) => finished,
        other => panic!("the stream ended with {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_is_one_trace_through_every_service_with_its_rounds_as_spans() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let collector = format!("http://{}", listener.local_addr().unwrap());
    let (sender, mut received) = mpsc::unbounded_channel();
    let serving = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(Collector(sender)))
        .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
    tokio::spawn(serving);

    let folder = tempfile::tempdir().unwrap();
    let addresses = free_addresses::<5>();
    let [embedding, gallery, first, second, coordinator] = addresses;
    let log = |address: SocketAddr| folder.path().join(format!("{}.log", address.port()));
    let start =
        |role, address, flags: &[&str]| Running::start(role, address, &collector, &log(address), flags);
    let model = |path: &str| goldens().join(path).display().to_string();
    let (clip, qwen) = (model("clip/trained"), model("qwen/tied"));
    let data = folder.path().join("gallery").display().to_string();
    let url = |address: SocketAddr| format!("http://{address}");
    let answers = format!("{},{}", url(first), url(second));
    // Two replicas, so that one is idle and rounds are asked ahead, and second copies of what takes its time.
    let peers = ["--embedding", &url(embedding), "--gallery", &url(gallery), "--answer", &answers];
    let hedged = ["--ask-ahead", "3", "--hedge-after", "1ms", "--hedge-percent", "100"];
    let mut roles = [
        start(Role::Embedding, embedding, &["--model", &clip]),
        start(Role::Gallery, gallery, &["--data", &data]),
        start(Role::Answer, first, &["--model", &qwen, "--max-output-tokens", "24"]),
        start(Role::Answer, second, &["--model", &qwen, "--max-output-tokens", "24"]),
        start(Role::Coordinator, coordinator, &[&peers[..], &hedged].concat()),
    ];
    for address in addresses {
        serves(address, &log(address)).await;
    }
    let mut client = CoordinatorServiceClient::new(serves(coordinator, &log(coordinator)).await);
    ingest(&mut client).await;
    // Nothing is ever surely a Yes: every round is asked.
    let asking = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let asked = search(&mut client, asking, 2.0, 1.0).await;
    assert_eq!(asked.questions.unwrap_or_default().locate, ROUNDS);
    // Anything that can be read as an answer is a Yes, in the first round: then its candidate is described.
    let refining = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let refined = search(&mut client, refining, -2.0, 0.0).await;
    drop(client);
    // The coordinator first: what it asks the others has ended then.
    tokio::task::spawn_blocking(move || roles.iter_mut().rev().for_each(Running::drain)).await.unwrap();
    let spans = Spans::take(&mut received);

    let trace = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes();
    let caller = 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes();
    let (root, search) = spans
        .of(&trace)
        .find(|(_, span)| span.name == "thicket.v1.CoordinatorService/SearchPerson")
        .expect("the search's own span");
    assert_eq!((search.service.as_str(), search.parent.as_slice()), ("thicket-coordinator", &caller[..]));
    for (id, span) in spans.of(&trace) {
        assert!(spans.is_below(id, root), "{} of {} is not below the search", span.name, span.service);
    }
    let services: BTreeSet<_> = spans.of(&trace).map(|(_, span)| span.service.as_str()).collect();
    let all = ["thicket-answer", "thicket-coordinator", "thicket-embedding", "thicket-gallery"];
    assert_eq!(services, BTreeSet::from(all));

    let rounds: HashMap<_, _> = spans.of(&trace).filter(|(_, span)| span.name == "round").collect();
    let mut numbers: Vec<_> = rounds.values().map(|span| span.integer("round")).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=i64::from(ROUNDS)).map(Some).collect::<Vec<_>>());
    for (id, round) in &rounds {
        assert_eq!(&round.parent, root, "a round is below another");
        for part in ["thicket.v1.AnswerService/Locate", "thicket.v1.GalleryService/GetImage"] {
            let of_round = spans.named(part).filter(|(_, span)| span.parent == **id).count();
            assert!(of_round > 0, "no {part} in round {:?}", round.integer("round"));
        }
    }
    for (_, question) in spans.named("question") {
        let call = spans.parent_of(question);
        assert!(call.name.starts_with("thicket.v1.AnswerService/"), "a question is below {}", call.name);
    }

    let trace = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes();
    let described: Vec<_> = spans.named("thicket.v1.AnswerService/Describe").map(|(_, span)| span).collect();
    assert_eq!(described.is_empty(), refined.questions.unwrap_or_default().describe == 0);
    for call in described {
        assert_eq!(call.trace, trace);
        let refine = spans.parent_of(call);
        assert_eq!((refine.name.as_str(), refine.integer("round")), ("refine", Some(1)));
    }
    // Whatever an answer replica was asked is part of one of the two.
    let both = [asking, refining].map(|parent| parent[3..35].to_owned());
    for (_, span) in spans.0.iter().filter(|(_, span)| span.service == "thicket-answer") {
        let trace: String = span.trace.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(both.contains(&trace), "{} is in another trace", span.name);
    }
}
