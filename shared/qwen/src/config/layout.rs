//! The layouts in which tools write a `config.json`, brought to one.

use serde_json::{Map, Value};

/// Brings the nested layout, and the spelling of the rotary fields that goes with it, to the flat one.
///
/// `model_type` stays that of the whole model and is repeated inside `vision_config`, where it selects the tower.
pub(super) fn flattened(mut fields: Map<String, Value>) -> Map<String, Value> {
    let model_type = fields.get("model_type").cloned().unwrap_or_default();
    let tied = fields.get("tie_word_embeddings").cloned().unwrap_or_default();
    if let Some(Value::Object(text)) = fields.remove("text_config") {
        let contradicted =
            tied.is_boolean() && text.get("tie_word_embeddings").is_some_and(|inner| *inner != tied);
        fields.extend(text);
        if contradicted {
            // Tools disagree on which of the two counts; the weights know.
            fields.remove("tie_word_embeddings");
        }
    }
    if let Some(Value::Object(rope)) = fields.remove("rope_parameters") {
        if let Some(theta) = rope.get("rope_theta") {
            fields.insert("rope_theta".to_string(), theta.clone());
        }
        fields.insert("rope_scaling".to_string(), Value::Object(rope));
    }
    if let Some(Value::Object(rope)) = fields.get_mut("rope_scaling")
        && let Some(kind) = rope.remove("rope_type")
    {
        // Where both spellings stand side by side, the one that asks for something special counts.
        let ordinary = rope.get("type").is_none_or(|known| known == "default" || known == "mrope");
        if ordinary && (kind != "default" || !rope.contains_key("type")) {
            rope.insert("type".to_string(), kind);
        }
    }
    fields.insert("model_type".to_string(), model_type.clone());
    let vision = fields.entry("vision_config").or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(vision) = vision {
        vision.insert("model_type".to_string(), model_type);
        vision.retain(|_, value| !value.is_null());
    }
    // A null means "not set" in these files.
    fields.retain(|_, value| !value.is_null());
    fields
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn flat(value: Value) -> Value {
        let Value::Object(fields) = value else { unreachable!() };
        Value::Object(flattened(fields))
    }

    #[test]
    fn the_rotary_fields_of_newer_tools_come_to_the_older_names() {
        let newer = json!({"text_config": {"rope_parameters": {
            "rope_type": "default", "type": "default", "rope_theta": 5000.0, "mrope_section": [1, 1, 2]
        }}});
        let flat = flat(newer);
        assert_eq!(flat["rope_theta"], 5000.0);
        assert_eq!(flat["rope_scaling"]["type"], "default");
        assert_eq!(flat["rope_scaling"]["mrope_section"], json!([1, 1, 2]));
    }

    #[test]
    fn a_special_rotary_kind_is_kept_under_either_spelling() {
        for rope in [
            json!({"type": "mrope", "rope_type": "yarn"}),
            json!({"type": "yarn", "rope_type": "default"}),
            json!({"rope_type": "yarn"}),
        ] {
            assert_eq!(flat(json!({ "rope_scaling": rope }))["rope_scaling"]["type"], "yarn");
        }
    }

    #[test]
    fn the_model_type_is_that_of_the_whole_model() {
        let nested = json!({"model_type": "qwen2_vl", "text_config": {"model_type": "qwen2_vl_text"}});
        let flat = flat(nested);
        assert_eq!(flat["model_type"], "qwen2_vl");
        assert_eq!(flat["vision_config"]["model_type"], "qwen2_vl");
    }

    #[test]
    fn a_contradiction_about_the_head_is_left_to_the_weights() {
        let tied = |outer: Value, inner: Value| {
            flat(json!({"tie_word_embeddings": outer, "text_config": {"tie_word_embeddings": inner}}))
                .get("tie_word_embeddings")
                .cloned()
        };
        assert_eq!(tied(json!(true), json!(false)), None);
        assert_eq!(tied(json!(true), json!(true)), Some(json!(true)));
        assert_eq!(tied(Value::Null, json!(true)), Some(json!(true)));
    }
}
