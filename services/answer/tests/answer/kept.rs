//! Answers that outlive the process.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use image::{ImageFormat, Rgb, RgbImage};
use thicket_answer::Config;
use thicket_proto::v1::answer_service_client::AnswerServiceClient;
use thicket_proto::v1::{DescribeRequest, ForgetImageRequest, ForgetImagesRequest, GetAnswerModelRequest};
use thicket_runtime::{Failure, Peer};
use tonic::Code;

use crate::support::{Running, png, refused, start};
use crate::{locate, reason};

fn config(folder: &Path) -> Config {
    Config { data: Some(folder.to_owned()), ..Config::in_process("unused") }
}

fn describe(image: Bytes) -> DescribeRequest {
    DescribeRequest { image, ..Default::default() }
}

async fn stop(role: Running) {
    let Running { client, stop, done, .. } = role;
    drop(client);
    stop.stop();
    done.await.unwrap().unwrap();
}

/// Starts again on a folder, once the thread that had the store has let go of it.
async fn start_again(folder: &Path) -> Running {
    loop {
        let opened = std::fs::File::open(folder.join("answers.redb")).unwrap();
        if opened.try_lock().is_ok() {
            drop(opened);
            return start(config(folder)).await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

async fn forget(role: &mut Running, image: &Bytes) -> u64 {
    let image_hash = blake3::hash(image).to_hex().to_string();
    role.client.forget_image(ForgetImageRequest { image_hash }).await.unwrap().into_inner().answers
}

#[tokio::test]
async fn judgements_and_descriptions_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let picture = png([204, 255, 0]);
    let mut role = start(config(folder.path())).await;
    role.says(&["1. a man\n2. a red coat"]);
    let judged = role.client.locate(locate("a man", picture.clone())).await.unwrap().into_inner();
    let described = role.client.describe(describe(picture.clone())).await.unwrap().into_inner();
    assert!(!judged.cached && !described.cached);
    stop(role).await;

    let mut role = start_again(folder.path()).await;
    let again = role.client.locate(locate("a man", picture.clone())).await.unwrap().into_inner();
    assert_eq!((again.p_yes.to_bits(), again.usable, again.cached), (judged.p_yes.to_bits(), true, true));
    let again = role.client.describe(describe(picture.clone())).await.unwrap().into_inner();
    assert_eq!((again.answers, again.raw_text), (described.answers, described.raw_text));
    assert!(again.cached && role.batches().is_empty(), "the model was not asked");
    let other = role.client.locate(locate("a woman", picture)).await.unwrap().into_inner();
    assert!(!other.cached, "another text is another question");
}

#[tokio::test]
async fn a_forgotten_image_is_asked_about_anew_and_the_others_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let (picture, other) = (png([204, 255, 0]), png([100, 255, 0]));
    let mut role = start(config(folder.path())).await;
    for picture in [&picture, &other] {
        role.client.locate(locate("a man", picture.clone())).await.unwrap();
        role.client.describe(describe(picture.clone())).await.unwrap();
    }
    assert_eq!(forget(&mut role, &picture).await, 2);
    assert_eq!(forget(&mut role, &picture).await, 0);
    for (picture, cached) in [(&picture, false), (&other, true)] {
        let judged = role.client.locate(locate("a man", picture.clone())).await.unwrap().into_inner();
        let described = role.client.describe(describe(picture.clone())).await.unwrap().into_inner();
        assert_eq!((judged.cached, described.cached), (cached, cached));
    }
}

#[tokio::test]
async fn without_a_data_folder_what_is_remembered_can_be_forgotten_too() {
    let mut role = start(Config::in_process("unused")).await;
    let picture = png([1, 2, 3]);
    role.client.describe(describe(picture.clone())).await.unwrap();
    assert_eq!(forget(&mut role, &picture).await, 1);
    assert!(!role.client.describe(describe(picture)).await.unwrap().into_inner().cached);
}

#[tokio::test]
async fn what_is_no_hash_is_refused() {
    let mut role = start(Config::in_process("unused")).await;
    let request = ForgetImageRequest { image_hash: "cafe".to_owned() };
    let status = role.client.forget_image(request).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "IMAGE_HASH"));
}

#[tokio::test]
async fn many_images_are_forgotten_at_once_and_leave_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let pictures: Vec<Bytes> = (0..6).map(|shade| png([shade, 255, 0])).collect();
    let mut role = start(config(folder.path())).await;
    for picture in &pictures {
        role.client.locate(locate("a man", picture.clone())).await.unwrap();
    }
    let hashes: Vec<_> = pictures.iter().map(|picture| blake3::hash(picture)).collect();
    let image_hashes = hashes[..4].iter().map(|hash| hash.to_hex().to_string()).collect();
    let request = ForgetImagesRequest { image_hashes };
    assert_eq!(role.client.forget_images(request.clone()).await.unwrap().into_inner().answers, 4);
    assert_eq!(role.client.forget_images(request).await.unwrap().into_inner().answers, 0);
    // Keys of the answers about an image begin with its hash.
    let file = std::fs::read(folder.path().join("answers.redb")).unwrap();
    let in_file = hashes.iter().map(|hash| file.windows(32).any(|window| window == hash.as_bytes()));
    assert_eq!(in_file.collect::<Vec<_>>(), [false, false, false, false, true, true]);
    for (picture, kept) in pictures.iter().zip([false, false, false, false, true, true]) {
        let judged = role.client.locate(locate("a man", picture.clone())).await.unwrap().into_inner();
        assert_eq!(judged.cached, kept);
    }
}

#[tokio::test]
async fn what_is_no_list_of_hashes_is_refused_and_nothing_is_forgotten() {
    let mut role = start(Config::in_process("unused")).await;
    let picture = png([1, 2, 3]);
    role.client.describe(describe(picture.clone())).await.unwrap();
    let good = blake3::hash(&picture).to_hex().to_string();
    for (image_hashes, expected) in [
        (vec![], "IMAGE_COUNT_OUT_OF_RANGE"),
        (vec![good.clone(); 10_001], "IMAGE_COUNT_OUT_OF_RANGE"),
        (vec![good, "cafe".to_owned()], "IMAGE_HASH"),
    ] {
        let status = role.client.forget_images(ForgetImagesRequest { image_hashes }).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, expected));
    }
    assert!(role.client.describe(describe(picture)).await.unwrap().into_inner().cached);
}

#[tokio::test]
async fn a_damaged_store_is_bad_input_at_start() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("answers.redb"), "nothing of the kind ".repeat(999)).unwrap();
    let Failure::BadInput(line) = refused(config(folder.path())).await else { panic!("it is bad input") };
    assert!(line.contains("answers.redb") && line.lines().count() == 1, "{line}");
}

/// The program itself, with the sample's model.
struct Program {
    child: Child,
    client: AnswerServiceClient<Peer>,
}

impl Program {
    async fn start(data: &Path) -> Self {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/sample-answer");
        let mut child = Command::new(env!("CARGO_BIN_EXE_thicket-answer"))
            .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--drain-delay", "0s"])
            .arg("--data")
            .arg(data)
            .arg("--model")
            .arg(model)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut address = None;
        for line in lines.by_ref() {
            let line = line.unwrap();
            if line.contains("serving")
                && let Some((_, rest)) = line.split_once("address=")
            {
                address = rest.split_whitespace().next().map(str::to_owned);
            }
            if address.is_some() && line.contains("model is warm") {
                break;
            }
        }
        // Somebody must go on reading, or the program blocks on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let address = address.expect("the program says where it serves");
        let peer = Peer::lazy(&format!("http://{address}"), None).unwrap();
        let mut client = AnswerServiceClient::new(peer);
        // It may be said to be warm a moment before it serves.
        while client.get_answer_model(GetAnswerModelRequest {}).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        Self { child, client }
    }
}

impl Drop for Program {
    /// SIGKILL: nothing of the program runs after this.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn picture(number: usize) -> Bytes {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let shade = number as u8;
    RgbImage::from_pixel(32, 64, Rgb([shade, 255 - shade, 60]))
        .write_to(&mut bytes, ImageFormat::Png)
        .unwrap();
    bytes.into_inner().into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_the_middle_loses_no_acknowledged_answer() {
    let folder = tempfile::tempdir().unwrap();
    let program = Program::start(folder.path()).await;
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let (client, count) = (program.client.clone(), acknowledged.clone());
    let asking = tokio::spawn(async move {
        let mut judged = Vec::new();
        for number in 0..200 {
            let mut client = client.clone();
            match client.locate(locate("a man in red", picture(number))).await {
                Ok(answer) => judged.push(answer.into_inner().p_yes.to_bits()),
                Err(_) => break,
            }
            count.fetch_add(1, Ordering::Relaxed);
        }
        judged
    });
    while acknowledged.load(Ordering::Relaxed) < 12 {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    drop(program);
    let judged = asking.await.unwrap();
    assert!((12..200).contains(&judged.len()), "killed in the middle: {}", judged.len());

    let mut program = Program::start(folder.path()).await;
    for (number, p_yes) in judged.into_iter().enumerate() {
        let again =
            program.client.locate(locate("a man in red", picture(number))).await.unwrap().into_inner();
        assert_eq!((again.p_yes.to_bits(), again.cached), (p_yes, true), "{number}");
    }
}
