use thicket_engine::Verdict;

use crate::wire::{Alternative, ChatResponse};

/// Reads p(Yes) from the alternatives of the first answer token. Without them the token itself decides, and p(Yes) is 0 or 1;
/// where it is neither word the mass is 0, which says that more of the answer has to be read.
///
/// What is not among the alternatives counts as nothing, so the mass is a lower bound.
pub(crate) fn verdict(response: &ChatResponse) -> Verdict {
    let prompt_tokens = response.usage.unwrap_or_default().prompt_tokens;
    let alternatives: &[Alternative] = response
        .choices
        .first()
        .and_then(|choice| choice.logprobs.as_ref()?.content.as_ref()?.first())
        .map_or(&[], |position| &position.top_logprobs);
    let share = |word: &str| -> f64 {
        let words = alternatives.iter().filter(|alternative| means(&alternative.token, word));
        words.map(|alternative| alternative.logprob.exp()).filter(|share| share.is_finite()).sum()
    };
    let said =
        response.choices.first().and_then(|choice| choice.message.content.as_deref()).unwrap_or_default();
    let says = |word: &str| f64::from(u8::from(means(said, word)));
    let (yes, no) = match alternatives.is_empty() {
        true => (says("yes"), says("no")),
        false => (share("yes"), share("no")),
    };
    let p_yes = if yes + no > 0.0 { (yes / (yes + no)).clamp(0.0, 1.0) } else { 0.0 };
    Verdict { p_yes, mass: (yes + no).min(1.0), prompt_tokens }
}

/// Whether a token is the word, capitalised or not, alone or after one space: the forms that count where the model computes
/// here. Servers write a leading space in one of three ways.
fn means(token: &str, word: &str) -> bool {
    let bare = token.strip_prefix([' ', '\u{120}', '\u{2581}']).unwrap_or(token);
    let (lower, upper) = (word.to_owned(), word.to_uppercase());
    let capitalised = format!("{}{}", &upper[..1], &lower[1..]);
    bare == lower || bare == upper || bare == capitalised
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(alternatives: &[(&str, f64)]) -> ChatResponse {
        let alternatives: Vec<_> = alternatives
            .iter()
            .map(|(token, share)| serde_json::json!({"token": token, "logprob": share.ln()}))
            .collect();
        let first = serde_json::json!({"token": "x", "logprob": 0.0, "top_logprobs": alternatives});
        let choice = serde_json::json!({"message": {"content": "x"}, "logprobs": {"content": [first]}});
        serde_json::from_value(serde_json::json!({"choices": [choice], "usage": {"prompt_tokens": 9}}))
            .unwrap()
    }

    #[test]
    fn every_form_of_the_two_words_counts() {
        let verdict = verdict(&response(&[
            ("Yes", 0.3),
            (" yes", 0.1),
            ("\u{120}YES", 0.1),
            ("No", 0.2),
            ("Not", 0.1),
            ("yES", 0.1),
            ("  no", 0.1),
        ]));
        assert!((verdict.p_yes - 0.5 / 0.7).abs() < 1e-9, "{verdict:?}");
        assert!((verdict.mass - 0.7).abs() < 1e-9, "{verdict:?}");
        assert_eq!(verdict.prompt_tokens, 9);
    }

    #[test]
    fn without_alternatives_the_first_token_decides() {
        for (said, p_yes, mass) in [("Yes", 1.0, 1.0), (" no", 0.0, 1.0), ("Maybe", 0.0, 0.0)] {
            let body = serde_json::json!({"choices": [{"message": {"content": said}}]});
            let verdict = verdict(&serde_json::from_value(body).unwrap());
            assert_eq!((verdict.p_yes, verdict.mass), (p_yes, mass), "{said}");
        }
    }

    #[test]
    fn without_alternatives_and_words_nothing_is_judged() {
        for body in [
            serde_json::json!({"choices": []}),
            serde_json::json!({"choices": [{"message": {}, "logprobs": {"content": null}}]}),
            serde_json::json!({"choices": [{"message": {}, "logprobs": {"content": []}}]}),
        ] {
            let verdict = verdict(&serde_json::from_value(body).unwrap());
            assert_eq!((verdict.p_yes, verdict.mass), (0.0, 0.0));
        }
    }

    #[test]
    fn absurd_log_probabilities_stay_probabilities() {
        let body = serde_json::json!({"choices": [{"message": {}, "logprobs": {"content": [{"top_logprobs": [
            {"token": "Yes", "logprob": 5000.0}, {"token": "No", "logprob": 3.0}
        ]}]}}]});
        let verdict = verdict(&serde_json::from_value(body).unwrap());
        assert!((0.0..=1.0).contains(&verdict.p_yes) && (0.0..=1.0).contains(&verdict.mass), "{verdict:?}");
    }
}
