//! Loading small data sets of every format, and refusing broken ones.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use thicket_datasets::{Dataset, DatasetError, Format, SplitName};

const CUHK: &str = r#"[
    {"split":"train","captions":["red coat, blue jeans","a man in red"],"file_path":"cam_a/1.bmp","processed_tokens":[["red"]],"id":1},
    {"split":"train","captions":["a woman"],"file_path":"cam_a/2.bmp","id":2},
    {"split":"val","captions":["v"],"file_path":"cam_b/3.bmp","id":500},
    {"split":"test","captions":["t one","t two"],"file_path":"CUHK01/4.png","id":700},
    {"split":"train","captions":[],"file_path":"cam_a/5.bmp","id":1}
]"#;

fn parse(format: Format, json: &str) -> Result<Dataset, DatasetError> {
    Dataset::parse(format, Path::new("/data/set/annotation.json"), json.as_bytes())
}

fn message(format: Format, json: &str) -> String {
    parse(format, json).unwrap_err().to_string()
}

#[test]
fn images_and_captions_keep_the_order_of_the_file() {
    let train = parse(Format::CuhkPedes, CUHK).unwrap().train;
    assert_eq!(train.captions, ["red coat, blue jeans", "a man in red", "a woman"]);
    assert_eq!(train.caption_images, [0, 0, 1]);
    assert_eq!(train.image_paths[1], PathBuf::from("/data/set/imgs/cam_a/2.bmp"));
    assert_eq!(train.image_paths.len(), 3);
    assert_eq!(train.identities(), 2);
}

#[test]
fn cuhk_training_ids_start_at_zero_and_test_ids_stay() {
    let dataset = parse(Format::CuhkPedes, CUHK).unwrap();
    assert_eq!(dataset.train.image_ids, [0, 1, 0]);
    assert_eq!(dataset.train.caption_ids, [0, 0, 1]);
    assert_eq!(dataset.validation.image_ids, [500]);
    assert_eq!(dataset.test.caption_ids, [700, 700]);
}

#[test]
fn icfg_ids_start_at_zero_unshifted_and_folders_are_not_splits() {
    let json = r#"[{"split":"train","captions":["a woman with a grey bag"],"file_path":"test/0000/x.jpg","processed_tokens":[["a"]],"id":0}]"#;
    let dataset = parse(Format::IcfgPedes, json).unwrap();
    assert_eq!(dataset.train.image_ids, [0]);
    assert_eq!(dataset.train.image_paths, [PathBuf::from("/data/set/imgs/test/0000/x.jpg")]);
    assert!(dataset.test.is_empty());
}

#[test]
fn rstp_names_its_images_under_another_key() {
    let json = r#"[{"id":3,"img_path":"0003_c7_0020.jpg","captions":["c one","c two"],"split":"val"}]"#;
    let dataset = parse(Format::RstpReid, json).unwrap();
    assert_eq!(dataset.validation.image_paths, [PathBuf::from("/data/set/imgs/0003_c7_0020.jpg")]);
    assert_eq!(dataset.split(SplitName::Validation).caption_ids, [3, 3]);
    assert!(message(Format::CuhkPedes, json).ends_with("record 0: file_path is missing"));
}

#[test]
fn ufine_paths_hold_their_folder_and_training_ids_stay() {
    let json = r#"[{"split":"train","id":1,"file_path":"images/1.jpg","captions":["long text one","long text two"]}]"#;
    let dataset = parse(Format::UFine6926, json).unwrap();
    assert_eq!(dataset.train.image_paths, [PathBuf::from("/data/set/images/1.jpg")]);
    assert_eq!(dataset.train.image_ids, [1]);
}

#[test]
fn a_gap_in_the_training_ids_is_refused() {
    let json = CUHK.replace("\"id\":2}", "\"id\":3}");
    assert_eq!(
        message(Format::CuhkPedes, &json),
        "/data/set/annotation.json: the 2 training identities must be 1 to 2 without a gap, but 2 is missing"
    );
}

#[test]
fn a_half_written_file_is_refused_on_one_line() {
    for end in [1, CUHK.len() / 2, CUHK.len() - 1] {
        let message = message(Format::CuhkPedes, &CUHK[..end]);
        assert!(
            message.starts_with("/data/set/annotation.json: damaged or half-written JSON at line "),
            "{message}"
        );
        assert!(!message.contains('\n'), "{message}");
    }
    assert!(message(Format::CuhkPedes, "").contains("damaged or half-written"));
}

#[test]
fn json_that_is_no_list_of_records_is_refused() {
    for json in ["{}", "7", "[7]", "[\"x\"]", "[null]"] {
        assert!(message(Format::CuhkPedes, json).contains("not a list of image records"), "{json}");
    }
}

#[test]
fn a_bad_field_is_named_with_its_record() {
    let bad = |from: &str, to: &str| {
        let json = CUHK.replacen(from, to, 1);
        message(Format::CuhkPedes, &json).replace("/data/set/annotation.json: ", "")
    };
    assert_eq!(bad("\"id\":2", "\"id\":\"2\""), "record 1: id must be an integer from 0, not a text");
    assert_eq!(bad("\"id\":2", "\"id\":2.5"), "record 1: id must be an integer from 0, not 2.5");
    assert_eq!(bad("\"id\":2", "\"id\":-2"), "record 1: id must be an integer from 0, not -2");
    assert_eq!(bad(",\"id\":2", ""), "record 1: id is missing");
    assert_eq!(bad("[\"a woman\"]", "\"a woman\""), "record 1: captions must be a list of texts, not a text");
    assert_eq!(bad("\"a man in red\"", "null"), "record 0: captions[1] must be a text, not null");
    assert_eq!(bad("\"a man in red\"", "\" \""), "record 0: captions[1] is empty");
    assert_eq!(bad("\"val\"", "[]"), "record 2: split must be a text, not a list");
}

#[test]
fn a_path_that_leaves_the_folder_is_refused() {
    for path in ["../../etc/passwd", "/etc/passwd", "a/../../b.jpg"] {
        let error = parse(Format::CuhkPedes, &CUHK.replace("cam_b/3.bmp", path)).unwrap_err();
        assert!(matches!(error, DatasetError::PathEscape { record: 2, .. }), "{error}");
    }
}

#[test]
fn both_spellings_of_the_icfg_file_are_found_in_the_folder_or_its_parent() {
    for name in Format::IcfgPedes.annotation_names() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("ICFG-PEDES");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join(name), "[]").unwrap();
        assert_eq!(Format::detect(&folder), Some(Format::IcfgPedes));
        for start in [root.path(), &folder] {
            let dataset = Dataset::load(Format::IcfgPedes, start).unwrap();
            assert_eq!(dataset.annotation, folder.join(name));
        }
    }
}

#[test]
fn an_absent_annotation_file_is_refused_with_the_names_looked_for() {
    let root = tempfile::tempdir().unwrap();
    let message = Dataset::load(Format::IcfgPedes, root.path()).unwrap_err().to_string();
    assert!(message.ends_with("looked for ICFG-PEDES.json, ICFG_PEDES.json"), "{message}");
    assert_eq!(Format::detect(root.path()), None);
}

#[test]
fn missing_image_files_are_counted() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("imgs/cam_a")).unwrap();
    std::fs::write(root.path().join("imgs/cam_a/2.bmp"), "x").unwrap();
    std::fs::write(root.path().join("reid_raw.json"), CUHK).unwrap();
    let train = Dataset::load(Format::CuhkPedes, root.path()).unwrap().train;
    assert_eq!(train.missing_images().count(), 2);
    let error = train.require_images().unwrap_err();
    assert!(
        matches!(&error, DatasetError::MissingImages { first, others: 1 } if first.ends_with("imgs/cam_a/1.bmp"))
    );
}

#[test]
fn names_are_read_back() {
    for format in Format::ALL {
        assert_eq!(format.name().to_lowercase().parse(), Ok(format));
    }
    for split in SplitName::ALL {
        assert_eq!(split.name().parse(), Ok(split));
    }
    assert_eq!("coco".parse::<Format>().unwrap_err().known.len(), 4);
}

/// JSON-like text, so that the parser gets further than the first byte.
fn fragments() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("["),
        Just("]"),
        Just("{"),
        Just("}"),
        Just(","),
        Just(":"),
        Just("\"id\""),
        Just("\"split\""),
        Just("\"train\""),
        Just("\"captions\""),
        Just("\"file_path\""),
        Just("\"a/../b\""),
        Just("7"),
        Just("9223372036854775807"),
        Just("-1"),
        Just("1e400"),
        Just("null"),
        Just("\"\\ud800\""),
        Just("\""),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

/// A list of records whose values are of any kind.
fn records() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        Just("0"),
        Just("1"),
        Just("9223372036854775807"),
        Just("\"train\""),
        Just("\"test\""),
        Just("[\"a\"]"),
        Just("[1]"),
        Just("{}"),
        Just("null"),
        Just("\"..\""),
        Just("\"x.jpg\""),
    ];
    let record = proptest::collection::vec(value, 4).prop_map(|values| {
        format!(
            "{{\"id\":{},\"split\":{},\"captions\":{},\"file_path\":{}}}",
            values[0], values[1], values[2], values[3]
        )
    });
    proptest::collection::vec(record, 0..4).prop_map(|records| format!("[{}]", records.join(",")))
}

proptest! {
    #[test]
    fn no_bytes_make_a_loader_panic(
        bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            fragments().prop_map(String::into_bytes),
            records().prop_map(String::into_bytes),
        ],
    ) {
        for format in Format::ALL {
            if let Ok(dataset) = Dataset::parse(format, Path::new("x.json"), &bytes) {
                for split in SplitName::ALL.map(|name| dataset.split(name)) {
                    prop_assert_eq!(split.image_ids.len(), split.image_paths.len());
                    prop_assert_eq!(split.captions.len(), split.caption_ids.len());
                    prop_assert!(split.caption_images.iter().all(|image| *image < split.image_ids.len()));
                }
            }
        }
    }
}
