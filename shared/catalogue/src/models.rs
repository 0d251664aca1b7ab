use crate::memory::Need;

/// What a model does in a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The embedding service reads it.
    Embedding,
    /// The answer service reads it.
    Answer {
        /// Bytes that one token takes in the key-value cache, in bf16: 2 (keys and values) x layers x key-value heads x
        /// head width x 2 bytes.
        cache_bytes_per_token: u64,
    },
    /// The answer service merges it into a base as that is read; it takes no memory of its own afterwards.
    Adapter {
        /// Catalogue name of the base.
        base: &'static str,
    },
}

/// A model that has been provided for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Model {
    /// Name on the command line.
    pub name: &'static str,
    /// Repository on the Hugging Face hub.
    pub repo: &'static str,
    /// What it does.
    pub role: Role,
    /// Values of all tensors that are loaded; a tied output head counts once.
    pub parameters: u64,
    /// Bytes of a value as published: 2 for bf16, 4 for f32; `None` where the file holds more than weights, as a
    /// training run's does.
    pub published_bytes: Option<u64>,
    /// What an operator should know of it, one line.
    pub note: &'static str,
}

/// The supported models, embedding models first.
pub const MODELS: [Model; 9] = [
    Model {
        name: "rde",
        repo: "Yangsss/RDE",
        role: Role::Embedding,
        // ViT-B/16 at 384 x 128 with 193 positions (86,189,568), its text tower of 77 (63,428,096) and the parts of
        // both token selections.
        parameters: 152_781_824,
        published_bytes: None,
        note: "person search; run folders with best.pth and configs.yaml",
    },
    Model {
        name: "clip-vit-base-patch32",
        repo: "openai/clip-vit-base-patch32",
        role: Role::Embedding,
        parameters: 151_277_313,
        published_bytes: Some(4),
        note: "general CLIP, not trained for person search",
    },
    Model {
        name: "clip-vit-base-patch16",
        repo: "openai/clip-vit-base-patch16",
        role: Role::Embedding,
        parameters: 149_620_737,
        published_bytes: Some(4),
        note: "general CLIP, not trained for person search",
    },
    Model {
        name: "clip-vit-large-patch14",
        repo: "openai/clip-vit-large-patch14",
        role: Role::Embedding,
        parameters: 427_616_513,
        published_bytes: Some(4),
        note: "general CLIP, not trained for person search",
    },
    Model {
        name: "qwen2-vl-2b-instruct",
        repo: "Qwen/Qwen2-VL-2B-Instruct",
        role: Role::Answer { cache_bytes_per_token: cache(28, 2, 128) },
        parameters: 2_208_985_600,
        published_bytes: Some(2),
        note: "",
    },
    Model {
        name: "qwen2-vl-7b-instruct",
        repo: "Qwen/Qwen2-VL-7B-Instruct",
        role: Role::Answer { cache_bytes_per_token: cache(28, 4, 128) },
        parameters: 8_291_375_616,
        published_bytes: Some(2),
        note: "the base of icl-lora",
    },
    Model {
        name: "qwen2.5-vl-3b-instruct",
        repo: "Qwen/Qwen2.5-VL-3B-Instruct",
        role: Role::Answer { cache_bytes_per_token: cache(36, 2, 128) },
        parameters: 3_754_622_976,
        published_bytes: Some(2),
        note: "",
    },
    Model {
        name: "qwen2.5-vl-7b-instruct",
        repo: "Qwen/Qwen2.5-VL-7B-Instruct",
        role: Role::Answer { cache_bytes_per_token: cache(28, 4, 128) },
        parameters: 8_292_166_656,
        published_bytes: Some(2),
        note: "",
    },
    Model {
        name: "icl-lora",
        repo: "Yangsss/ICL",
        role: Role::Adapter { base: "qwen2-vl-7b-instruct" },
        // Rank 8 on seven matrices of 28 layers.
        parameters: 20_185_088,
        published_bytes: Some(4),
        note: "LoRA adapter for person search, merged into its base",
    },
];

const fn cache(layers: u64, heads: u64, width: u64) -> u64 {
    2 * layers * heads * width * 2
}

/// The model of this name; also by its repository, in any case of letters.
#[must_use]
pub fn find(name: &str) -> Option<&'static Model> {
    MODELS.iter().find(|model| model.name.eq_ignore_ascii_case(name) || model.repo.eq_ignore_ascii_case(name))
}

impl Model {
    /// Bytes of the weight files as published, up to their headers; `None` where that cannot be told beforehand.
    #[must_use]
    pub fn published_size(&self) -> Option<u64> {
        self.published_bytes.map(|bytes| self.parameters * bytes)
    }

    /// What running it on a GPU takes, in bf16 or f16.
    #[must_use]
    pub fn need(&self) -> Need {
        match self.role {
            Role::Embedding => Need::of(self.parameters, false),
            Role::Answer { .. } => Need::of(self.parameters, true),
            // The base is what runs.
            Role::Adapter { base } => find(base).map_or(Need::of(self.parameters, true), Self::need),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_repositories_are_unique_and_either_finds_a_model() {
        for (place, model) in MODELS.iter().enumerate() {
            assert_eq!(MODELS.iter().position(|other| other.name == model.name), Some(place));
            assert_eq!(find(model.repo), Some(model));
            assert_eq!(find(&model.name.to_uppercase()), Some(model));
            assert_eq!(model.repo.split('/').count(), 2);
        }
        assert_eq!(find("qwen"), None);
    }

    #[test]
    fn the_base_of_an_adapter_is_an_answer_model() {
        for model in MODELS {
            if let Role::Adapter { base } = model.role {
                let base = find(base).unwrap();
                assert!(matches!(base.role, Role::Answer { .. }));
                assert_eq!(model.need(), base.need());
            }
        }
    }

    /// Layers, width, feed-forward width, key-value width and vocabulary of a decoder.
    fn decoder(layers: u64, width: u64, inner: u64, kv: u64, vocabulary: u64, tied: bool) -> u64 {
        let attention = 2 * width * width + width + 2 * (width * kv + kv);
        let layer = attention + 3 * width * inner + 2 * width;
        let tables = if tied { 1 } else { 2 };
        layers * layer + tables * vocabulary * width + width
    }

    #[test]
    fn parameter_counts_follow_from_the_published_sizes() {
        let patch = 3 * 2 * 14 * 14 * 1280;
        let attention = 1280 * 3840 + 3840 + 1280 * 1280 + 1280;
        let merger = |norm: u64, out: u64| norm + 5120 * 5120 + 5120 + 5120 * out + out;
        // LayerNorms with bias and a plain perceptron.
        let qwen2 =
            |out| patch + 32 * (attention + 4 * 1280 + 2 * 1280 * 5120 + 5120 + 1280) + merger(2560, out);
        // RMSNorms and a gated perceptron with biases.
        let qwen25 =
            |out| patch + 32 * (attention + 2 * 1280 + 3 * 1280 * 3420 + 2 * 3420 + 1280) + merger(1280, out);
        for (name, parameters) in [
            ("qwen2-vl-2b-instruct", qwen2(1536) + decoder(28, 1536, 8960, 256, 151_936, true)),
            ("qwen2-vl-7b-instruct", qwen2(3584) + decoder(28, 3584, 18_944, 512, 152_064, false)),
            ("qwen2.5-vl-3b-instruct", qwen25(2048) + decoder(36, 2048, 11_008, 256, 151_936, true)),
            ("qwen2.5-vl-7b-instruct", qwen25(3584) + decoder(28, 3584, 18_944, 512, 152_064, false)),
        ] {
            assert_eq!(find(name).unwrap().parameters, parameters, "{name}");
        }
    }

    #[test]
    fn clip_parameter_counts_follow_from_the_published_sizes() {
        let block = |width: u64| 12 * width * width + 13 * width;
        let tower = |width: u64, layers: u64| layers * block(width) + 2 * width;
        let clip = |vision: u64, layers: u64, patch: u64, text: u64, out: u64| {
            let positions = (224 / patch) * (224 / patch) + 1;
            let seen = 3 * patch * patch * vision + vision + positions * vision + 2 * vision;
            let read = 49_408 * text + 77 * text;
            seen + tower(vision, layers) + vision * out + read + tower(text, 12) + text * out + 1
        };
        assert_eq!(find("clip-vit-base-patch32").unwrap().parameters, clip(768, 12, 32, 512, 512));
        assert_eq!(find("clip-vit-base-patch16").unwrap().parameters, clip(768, 12, 16, 512, 512));
        assert_eq!(find("clip-vit-large-patch14").unwrap().parameters, clip(1024, 24, 14, 768, 768));
    }

    #[test]
    fn cache_sizes_are_those_of_the_published_models() {
        let bytes = |name: &str| match find(name).unwrap().role {
            Role::Answer { cache_bytes_per_token } => cache_bytes_per_token,
            other => panic!("{other:?}"),
        };
        assert_eq!(bytes("qwen2-vl-2b-instruct"), 28_672);
        assert_eq!(bytes("qwen2-vl-7b-instruct"), 57_344);
        assert_eq!(bytes("qwen2.5-vl-3b-instruct"), 36_864);
    }
}
