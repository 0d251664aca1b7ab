use std::collections::HashMap;

use crate::error::MilvusError;
use crate::proto::field_data::Field as Data;
use crate::proto::scalar_field::Data as Scalars;
use crate::proto::vector_field::Data as Vectors;
use crate::proto::{
    ArrayArray, DataType, FieldData, FloatArray, LongArray, ScalarField, StringArray, VectorField,
};

/// The values of one field, one a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Name of the field.
    pub name: &'static str,
    /// Its values.
    pub values: Values,
}

/// Values of one kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Texts.
    Texts(Vec<String>),
    /// Whole numbers.
    Numbers(Vec<i64>),
    /// Lists of texts.
    Lists(Vec<Vec<String>>),
    /// Vectors, row-major.
    Vectors {
        /// Values of each.
        dimension: usize,
        /// All of them.
        values: Vec<f32>,
    },
}

impl Column {
    pub(crate) fn data(self) -> FieldData {
        let scalars = |data| Data::Scalars(ScalarField { data: Some(data) });
        let (data_type, field) = match self.values {
            Values::Texts(data) => (DataType::VarChar, scalars(Scalars::StringData(StringArray { data }))),
            Values::Numbers(data) => (DataType::Int64, scalars(Scalars::LongData(LongArray { data }))),
            Values::Lists(lists) => {
                let data = lists
                    .into_iter()
                    .map(|data| ScalarField { data: Some(Scalars::StringData(StringArray { data })) });
                let element_type = DataType::VarChar as i32;
                let lists = ArrayArray { data: data.collect(), element_type };
                (DataType::Array, scalars(Scalars::ArrayData(lists)))
            }
            Values::Vectors { dimension, values } => {
                let data = Some(Vectors::FloatVector(FloatArray { data: values }));
                (DataType::FloatVector, Data::Vectors(VectorField { dim: dimension as i64, data }))
            }
        };
        FieldData { r#type: data_type as i32, field_name: self.name.to_owned(), field: Some(field) }
    }
}

/// Rows as Milvus answered them: fields by name.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    operation: &'static str,
    rows: usize,
    fields: HashMap<String, Values>,
}

impl Columns {
    /// Takes the fields of an answer; `rows` where the answer says how many there are.
    pub(crate) fn read(
        operation: &'static str,
        fields: Vec<FieldData>,
        rows: Option<usize>,
    ) -> Result<Self, MilvusError> {
        let mut columns = Self { operation, rows: rows.unwrap_or(0), fields: HashMap::new() };
        for (i, field) in fields.into_iter().enumerate() {
            let name = field.field_name.clone();
            let Some(values) = values(field) else { continue };
            let found = values.len();
            if i == 0 && rows.is_none() {
                columns.rows = found;
            }
            columns.fields.insert(name, values);
        }
        for (name, values) in &columns.fields {
            if values.len() != columns.rows {
                let reason = format!("{} values of {name} in {} rows", values.len(), columns.rows);
                return Err(MilvusError::Answer { operation, reason });
            }
        }
        Ok(columns)
    }

    /// Rows held.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// True where there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Takes a field of texts.
    ///
    /// # Errors
    /// [`MilvusError::Answer`] where there is none of that name and kind; so for the others.
    pub fn texts(&mut self, name: &str) -> Result<Vec<String>, MilvusError> {
        match self.fields.remove(name) {
            Some(Values::Texts(values)) => Ok(values),
            other => self.absent(name, "texts", other),
        }
    }

    /// Takes a field of numbers.
    ///
    /// # Errors
    /// [`MilvusError::Answer`].
    pub fn numbers(&mut self, name: &str) -> Result<Vec<i64>, MilvusError> {
        match self.fields.remove(name) {
            Some(Values::Numbers(values)) => Ok(values),
            other => self.absent(name, "numbers", other),
        }
    }

    /// Takes a field of vectors, row-major.
    ///
    /// # Errors
    /// [`MilvusError::Answer`], also where they have another dimension.
    pub fn vectors(&mut self, name: &str, dimension: usize) -> Result<Vec<f32>, MilvusError> {
        match self.fields.remove(name) {
            Some(Values::Vectors { dimension: found, values }) if found == dimension => Ok(values),
            other => self.absent(name, "vectors", other),
        }
    }

    /// An answer without rows need not name its fields.
    fn absent<T: Default>(&self, name: &str, kind: &str, found: Option<Values>) -> Result<T, MilvusError> {
        if self.rows == 0 {
            return Ok(T::default());
        }
        let found = if found.is_some() { "other values in" } else { "no field" };
        let reason = format!("{found} {name} where {kind} are expected");
        Err(MilvusError::Answer { operation: self.operation, reason })
    }
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Self::Texts(values) => values.len(),
            Self::Numbers(values) => values.len(),
            Self::Lists(values) => values.len(),
            Self::Vectors { dimension, values } => values.len() / (*dimension).max(1),
        }
    }
}

fn values(field: FieldData) -> Option<Values> {
    match field.field? {
        Data::Scalars(scalars) => match scalars.data? {
            Scalars::LongData(LongArray { data }) => Some(Values::Numbers(data)),
            Scalars::StringData(StringArray { data }) => Some(Values::Texts(data)),
            Scalars::ArrayData(ArrayArray { data, .. }) => {
                let lists = data.into_iter().map(|list| match list.data {
                    Some(Scalars::StringData(StringArray { data })) => data,
                    _ => Vec::new(),
                });
                Some(Values::Lists(lists.collect()))
            }
        },
        Data::Vectors(VectorField { dim, data }) => {
            let Vectors::FloatVector(FloatArray { data: values }) = data?;
            let dimension = usize::try_from(dim).ok().filter(|dim| *dim > 0)?;
            values.len().is_multiple_of(dimension).then_some(Values::Vectors { dimension, values })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &'static str, values: Values) -> FieldData {
        Column { name, values }.data()
    }

    #[test]
    fn rows_survive_their_form_on_the_wire() {
        let fields = vec![
            column("id", Values::Texts(vec!["a".to_owned(), "b".to_owned()])),
            column("n", Values::Numbers(vec![1, -2])),
            column("v", Values::Vectors { dimension: 2, values: vec![1.0, 2.0, 3.0, 4.0] }),
        ];
        let mut rows = Columns::read("Query", fields, None).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows.texts("id").unwrap(), ["a", "b"]);
        assert_eq!(rows.numbers("n").unwrap(), [1, -2]);
        assert_eq!(rows.vectors("v", 2).unwrap(), [1.0, 2.0, 3.0, 4.0]);
        assert!(matches!(rows.texts("id"), Err(MilvusError::Answer { .. })), "it was taken");
    }

    #[test]
    fn an_answer_whose_fields_disagree_is_refused() {
        let fields = vec![
            column("id", Values::Texts(vec!["a".to_owned(), "b".to_owned()])),
            column("n", Values::Numbers(vec![1])),
        ];
        assert!(matches!(Columns::read("Query", fields, None), Err(MilvusError::Answer { .. })));
        let vectors = column("v", Values::Vectors { dimension: 2, values: vec![1.0, 2.0] });
        let mut rows = Columns::read("Query", vec![vectors], None).unwrap();
        assert!(matches!(rows.vectors("v", 3), Err(MilvusError::Answer { .. })));
    }
}
