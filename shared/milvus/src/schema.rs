use crate::proto::{DataType, FieldSchema, KeyValuePair};

/// A field of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The key of a row: text of at most so many bytes. One field of a collection is it.
    Key {
        /// Most bytes.
        bytes: usize,
    },
    /// Text of at most so many bytes.
    Text {
        /// Most bytes, 1 to 65,535.
        bytes: usize,
    },
    /// A whole number.
    Number,
    /// A list of at most `count` texts of at most `bytes` bytes.
    Texts {
        /// Most texts, 1 to 4,096.
        count: usize,
        /// Most bytes of each.
        bytes: usize,
    },
    /// A vector of so many values.
    Vector {
        /// Values, 2 to 32,768.
        dimension: usize,
    },
}

/// How a field of vectors is searched, by inner product always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Index {
    /// Every vector is compared: exact.
    #[default]
    Flat,
    /// A graph of neighbours: faster, and it may leave some out.
    Hnsw,
}

impl Index {
    pub(crate) fn parameters(self) -> Vec<KeyValuePair> {
        let (kind, params) = match self {
            Self::Flat => ("FLAT", "{}"),
            Self::Hnsw => ("HNSW", r#"{"M":32,"efConstruction":200}"#),
        };
        vec![pair("index_type", kind), pair("metric_type", "IP"), pair("params", params)]
    }

    /// Parameters of a search for `top` results.
    pub(crate) fn search_parameters(self, top: usize) -> String {
        match self {
            Self::Flat => "{}".to_owned(),
            Self::Hnsw => format!(r#"{{"ef":{}}}"#, (2 * top).clamp(128, 32_768)),
        }
    }
}

impl Field {
    pub(crate) fn schema(&self) -> FieldSchema {
        let mut field = FieldSchema { name: self.name.to_owned(), ..FieldSchema::default() };
        let mut set = |data_type: DataType, params: &[(&str, usize)]| {
            field.data_type = data_type as i32;
            field.type_params = params.iter().map(|(key, value)| pair(key, &value.to_string())).collect();
        };
        match self.kind {
            Kind::Key { bytes } | Kind::Text { bytes } => set(DataType::VarChar, &[("max_length", bytes)]),
            Kind::Number => set(DataType::Int64, &[]),
            Kind::Texts { count, bytes } => {
                set(DataType::Array, &[("max_capacity", count), ("max_length", bytes)]);
            }
            Kind::Vector { dimension } => set(DataType::FloatVector, &[("dim", dimension)]),
        }
        if matches!(self.kind, Kind::Texts { .. }) {
            field.element_type = DataType::VarChar as i32;
        }
        field.is_primary_key = matches!(self.kind, Kind::Key { .. });
        field
    }
}

pub(crate) fn pair(key: &str, value: &str) -> KeyValuePair {
    KeyValuePair { key: key.to_owned(), value: value.to_owned() }
}
