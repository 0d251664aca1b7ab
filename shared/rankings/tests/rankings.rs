//! Rows to bytes and back.

use bytes::Bytes;
use proptest::prelude::*;
use thicket_rankings::{Anchor, FileError, FileWriter, Item, QueryError, Ranking, Row, read, write};

fn ranking() -> impl Strategy<Value = Ranking> {
    (
        proptest::collection::vec(
            (".{0,12}", "[0-9a-f]{0,8}", any::<f32>().prop_filter("equal to itself", |x| !x.is_nan()))
                .prop_map(|(id, image, score)| Item { id, image, score }),
            0..6,
        ),
        "[a-z_]{1,12}",
        proptest::option::of((".{1,8}", "[0-9a-f]{0,8}", 1_u32..100).prop_map(|(id, image, round)| Anchor {
            id,
            image,
            round,
        })),
        proptest::option::of(".{0,40}"),
        [0_u32..100, 0..100, 0..100],
    )
        .prop_map(|(items, outcome, anchor, refined_text, questions)| Ranking {
            items,
            outcome,
            anchor,
            refined_text,
            questions,
        })
}

fn error() -> impl Strategy<Value = QueryError> {
    ("[A-Z_]{1,12}", "[A-Z_]{0,12}", ".{0,40}").prop_map(|(code, reason, message)| QueryError {
        code,
        reason,
        message,
    })
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let result = prop_oneof![ranking().prop_map(Ok), error().prop_map(Err)];
    proptest::collection::vec((0..u64::from(u32::MAX), ".{1,12}", result), 0..20).prop_map(|rows| {
        rows.into_iter().map(|(position, query_id, result)| Row { position, query_id, result }).collect()
    })
}

fn some_rows() -> Vec<Row> {
    let ranking = Ranking {
        items: vec![
            Item { id: "a".into(), image: "cafe".into(), score: 0.5 },
            Item { id: "b".into(), image: String::new(), score: -0.25 },
        ],
        outcome: "refined".into(),
        anchor: Some(Anchor { id: "a".into(), image: "cafe".into(), round: 2 }),
        refined_text: Some("a red coat".into()),
        questions: [2, 1, 1],
    };
    let error =
        QueryError { code: "INVALID_ARGUMENT".into(), reason: "TEXT_EMPTY".into(), message: "text".into() };
    vec![
        Row { position: 0, query_id: "q0".into(), result: Ok(ranking.clone()) },
        Row { position: 1, query_id: "q1".into(), result: Err(error) },
        Row { position: 2, query_id: "q2".into(), result: Ok(Ranking { items: vec![], ..ranking }) },
    ]
}

proptest! {
    #[test]
    fn rows_come_back_as_they_were(rows in rows()) {
        let file = write(&rows).unwrap();
        prop_assert_eq!(read(file).unwrap(), rows);
    }

    #[test]
    fn the_same_rows_give_the_same_bytes(rows in rows()) {
        prop_assert_eq!(write(&rows).unwrap(), write(&rows.clone()).unwrap());
    }

    #[test]
    fn groups_come_back_one_after_the_other(groups in proptest::collection::vec(rows(), 0..4)) {
        let mut writer = FileWriter::new().unwrap();
        let mut file = Vec::new();
        for group in &groups {
            file.extend_from_slice(&writer.append(group).unwrap());
        }
        file.extend_from_slice(&writer.finish().unwrap());
        prop_assert_eq!(read(file.into()).unwrap(), groups.concat());
    }

    #[test]
    fn damage_is_an_error_or_other_rows_and_no_panic(at in 0_usize..10_000, bits in 1_u8..) {
        let mut file = write(&some_rows()).unwrap().to_vec();
        let at = at % file.len();
        file[at] ^= bits;
        let _ = read(file.into());
    }
}

#[test]
fn what_is_no_file_of_results_is_refused() {
    let file = write(&some_rows()).unwrap();
    for bytes in [Bytes::new(), Bytes::from_static(b"PAR1"), file.slice(..file.len() - 1), file.slice(1..)] {
        assert!(matches!(read(bytes), Err(FileError::Form { .. })));
    }
}

#[test]
fn no_rows_are_a_file_too() {
    assert_eq!(read(write(&[]).unwrap()), Ok(vec![]));
}
