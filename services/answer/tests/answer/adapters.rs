//! Adapters that come and go while the role serves.

use std::path::Path;

use thicket_answer::{Config, LoadingArgs};
use thicket_proto::v1::{
    AggregateRequest, DescribeRequest, ListAdaptersRequest, ListAdaptersResponse, LoadAdapterRequest,
    UnloadAdapterRequest,
};
use thicket_runtime::Failure;
use tonic::Code;

use crate::support::{Running, png, start};
use crate::{locate, reason};

/// A folder of adapters, which the scripted model does not read.
fn folder(names: &[&str]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for name in names {
        std::fs::create_dir(root.path().join(name)).unwrap();
        std::fs::write(root.path().join(name).join("adapter_config.json"), "{}").unwrap();
    }
    root
}

fn config(root: &Path) -> Config {
    let adapters = Some(root.to_path_buf());
    let loading = LoadingArgs { adapters, adapter_limit: 2, ..LoadingArgs::default() };
    Config { loading, ..Config::in_process("unused") }
}

async fn load(role: &mut Running, name: &str) -> Result<String, tonic::Status> {
    let loaded = role.client.load_adapter(LoadAdapterRequest { name: name.to_owned() }).await?;
    Ok(loaded.into_inner().adapter.unwrap().fingerprint)
}

async fn listed(role: &mut Running) -> (Vec<String>, Vec<String>) {
    let ListAdaptersResponse { loaded, available } =
        role.client.list_adapters(ListAdaptersRequest {}).await.unwrap().into_inner();
    (loaded.into_iter().map(|adapter| adapter.name).collect(), available)
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn an_adapter_is_loaded_asked_and_given_up_while_the_role_serves() {
    let root = folder(&["a", "b"]);
    let mut role = start(config(root.path())).await;
    assert_eq!(listed(&mut role).await, (names(&[]), names(&["a", "b"])));
    assert_eq!(load(&mut role, "b").await.unwrap(), "cafe+b");
    assert_eq!(listed(&mut role).await, (names(&["b"]), names(&["a", "b"])));

    role.says(&["merged"]);
    let request = AggregateRequest {
        text: "a man".to_owned(),
        answers: vec!["Red coat.".to_owned()],
        adapter: "b".to_owned(),
    };
    role.client.aggregate(request).await.unwrap();
    assert!(role.asked.lock().unwrap()[0].1[0].starts_with("b: "));

    role.client.unload_adapter(UnloadAdapterRequest { name: "b".to_owned() }).await.unwrap();
    assert_eq!(listed(&mut role).await.0, names(&[]));
    let mut question = locate("a man", png([200, 255, 0]));
    question.adapter = "b".to_owned();
    let status = role.client.locate(question).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "ADAPTER_NOT_FOUND"));
}

#[tokio::test]
async fn a_description_belongs_to_its_adapter() {
    let root = folder(&["a"]);
    let mut role = start(config(root.path())).await;
    load(&mut role, "a").await.unwrap();
    role.says(&["1. a man", "1. a woman"]);
    let request = |adapter: &str| DescribeRequest { image: png([1, 2, 3]), adapter: adapter.to_owned() };
    let plain = role.client.describe(request("")).await.unwrap().into_inner();
    let adapted = role.client.describe(request("a")).await.unwrap().into_inner();
    assert_eq!((plain.answers, adapted.answers), (names(&["A man."]), names(&["A woman."])));
    assert!(!adapted.cached);
}

#[tokio::test]
async fn what_cannot_be_loaded_is_refused_with_its_reason() {
    let root = folder(&["a", "b", "bad", "c"]);
    let mut role = start(config(root.path())).await;
    for (name, code, expected) in [
        ("absent", Code::NotFound, "ADAPTER_NOT_FOUND"),
        ("../a", Code::InvalidArgument, "ADAPTER_NAME"),
        ("", Code::InvalidArgument, "ADAPTER_NAME"),
    ] {
        let status = load(&mut role, name).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (code, expected), "{name}");
    }
    assert_eq!(load(&mut role, "bad").await.unwrap_err().code(), Code::InvalidArgument);
    load(&mut role, "a").await.unwrap();
    load(&mut role, "b").await.unwrap();
    let status = load(&mut role, "c").await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "ADAPTERS_FULL"));
    load(&mut role, "a").await.unwrap();
    assert_eq!(listed(&mut role).await.0, names(&["a", "b"]));
}

#[tokio::test]
async fn without_an_adapter_folder_nothing_can_be_loaded() {
    let mut role = start(Config::in_process("unused")).await;
    assert_eq!(load(&mut role, "a").await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(listed(&mut role).await, (names(&[]), names(&[])));
    let unload = role.client.unload_adapter(UnloadAdapterRequest { name: "a".to_owned() }).await;
    assert_eq!(unload.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn adapters_named_at_start_are_loaded_before_the_role_is_ready() {
    let root = folder(&["a", "b"]);
    let mut start_up = config(root.path());
    start_up.loading.load_adapters = names(&["a"]);
    assert_eq!(listed(&mut start(start_up).await).await.0, names(&["a"]));

    let mut start_up = config(root.path());
    start_up.loading.load_adapters = names(&["absent"]);
    let refused = thicket_answer::App::build(Config {
        model: thicket_answer::ModelSource::Folder(root.path().to_path_buf()),
        ..start_up
    })
    .await;
    assert!(matches!(refused, Err(Failure::BadInput(line)) if line.contains("absent")));
}
