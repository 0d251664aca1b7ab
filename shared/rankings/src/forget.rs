use crate::Row;

impl Row {
    /// Takes out what is there of forgotten images: their items, and where the anchor is one of them, the anchor and the text
    /// that was made from what was seen on it. Says whether there was any.
    ///
    /// How the interaction ended, what was asked and the scores of the other items stay.
    pub fn forget(&mut self, is_forgotten: impl Fn(&str) -> bool) -> bool {
        let Ok(ranking) = &mut self.result else { return false };
        let is_gone = |image: &str| !image.is_empty() && is_forgotten(image);
        let before = ranking.items.len();
        ranking.items.retain(|item| !is_gone(&item.image));
        let mut changed = ranking.items.len() < before;
        if ranking.anchor.as_ref().is_some_and(|anchor| is_gone(&anchor.image)) {
            (ranking.anchor, ranking.refined_text) = (None, None);
            changed = true;
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use crate::{Anchor, Item, QueryError, Ranking, Row};

    fn row(images: &[&str], anchor: Option<&str>) -> Row {
        let item = |image: &&str| Item { id: format!("item of {image}"), image: (*image).into(), score: 0.5 };
        let anchor =
            anchor.map(|image| Anchor { id: format!("item of {image}"), image: image.into(), round: 2 });
        let refined_text = anchor.is_some().then(|| "a red coat".to_owned());
        let result = Ok(Ranking {
            items: images.iter().map(item).collect(),
            outcome: "refined".into(),
            anchor,
            refined_text,
            questions: [2, 1, 1],
        });
        Row { position: 0, query_id: "q".into(), result }
    }

    #[test]
    fn items_of_forgotten_images_go_and_the_others_stay_in_order() {
        let mut given = row(&["a", "b", "", "a", "c"], None);
        assert!(given.forget(|image| image == "a"));
        assert_eq!(given, row(&["b", "", "c"], None));
        assert!(!given.forget(|image| image == "a"));
    }

    #[test]
    fn an_anchor_goes_with_the_text_that_it_led_to_even_outside_the_ranking() {
        let mut given = row(&["b"], Some("a"));
        assert!(given.forget(|image| image == "a"));
        assert_eq!(given, row(&["b"], None));
        let mut other = row(&["b"], Some("c"));
        assert!(!other.forget(|image| image == "a"));
        assert_eq!(other, row(&["b"], Some("c")));
    }

    #[test]
    fn what_has_no_image_and_what_failed_names_none() {
        assert!(!row(&[""], None).forget(|_| true));
        let error = QueryError { code: "NOT_FOUND".into(), reason: String::new(), message: String::new() };
        assert!(!Row { position: 0, query_id: "q".into(), result: Err(error) }.forget(|_| true));
    }
}
