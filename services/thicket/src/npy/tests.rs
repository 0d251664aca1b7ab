use ndarray::{Array1, Array2, ShapeBuilder};
use ndarray_npy::{read_npy, write_npy};

use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn both_orders_and_both_float_widths_are_read_alike() {
    let folder = folder();
    let path = folder.path().join("m.npy");
    let narrow = Array2::from_shape_vec((2, 3), vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let mut fortran = Array2::<f32>::zeros((2, 3).f());
    fortran.assign(&narrow);
    let wide = narrow.mapv(f64::from);
    let expected = Matrix { rows: 2, columns: 3, values: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0] };

    write_npy(&path, &narrow).unwrap();
    assert_eq!(read_floats("m", &path).unwrap(), expected);
    write_npy(&path, &fortran).unwrap();
    assert!(std::fs::read(&path).unwrap().windows(4).any(|bytes| bytes == b"True"));
    assert_eq!(read_floats("m", &path).unwrap(), expected);
    write_npy(&path, &wide).unwrap();
    assert_eq!(read_floats("m", &path).unwrap(), expected);
}

#[test]
fn big_endian_values_are_turned() {
    let folder = folder();
    let path = folder.path().join("m.npy");
    let mut bytes = header::write(">i4", &[2]);
    bytes.extend([1i32, -2].iter().flat_map(|value| value.to_be_bytes()));
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(read_integers("ids", &path).unwrap(), [1, -2]);
}

#[test]
fn integers_of_every_width_become_int64() {
    let folder = folder();
    let path = folder.path().join("ids.npy");
    write_npy(&path, &Array1::from(vec![-1i32, 7])).unwrap();
    assert_eq!(read_integers("ids", &path).unwrap(), [-1, 7]);
    write_npy(&path, &Array1::from(vec![-1i64, i64::MAX])).unwrap();
    assert_eq!(read_integers("ids", &path).unwrap(), [-1, i64::MAX]);
    write_npy(&path, &Array1::from(vec![200u8])).unwrap();
    assert_eq!(read_integers("ids", &path).unwrap(), [200]);
    write_npy(&path, &Array1::from(vec![u64::MAX])).unwrap();
    assert!(matches!(read_integers("ids", &path), Err(NpyError::Value { .. })));
}

#[test]
fn what_is_written_another_library_reads() {
    let folder = folder();
    let path = folder.path().join("m.npy");
    for rows in [1, 3, 1000] {
        let matrix = Matrix { rows, columns: 2, values: (0..rows * 2).map(|value| value as f32).collect() };
        write_floats(&path, &matrix).unwrap();
        let read: Array2<f32> = read_npy(&path).unwrap();
        assert_eq!((read.nrows(), read.ncols()), (rows, 2));
        assert_eq!(read.into_raw_vec_and_offset().0, matrix.values);
    }
}

#[test]
fn a_header_that_promises_more_than_the_file_has_is_refused_before_anything_is_allocated() {
    let folder = folder();
    let path = folder.path().join("m.npy");
    for shape in [[1 << 40, 1 << 20], [usize::MAX, usize::MAX], [3, 5]] {
        std::fs::write(&path, header::write("<f4", &shape)).unwrap();
        assert!(matches!(read_floats("m", &path), Err(NpyError::Length { actual: 0, .. })));
    }
}

#[test]
fn a_damaged_header_is_refused_with_its_reason() {
    let folder = folder();
    let path = folder.path().join("m.npy");
    let dictionary = |text: &str| {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((text.len() as u16).to_le_bytes());
        bytes.extend(text.bytes());
        bytes
    };
    let nested = "(".repeat(9_000);
    for bytes in [
        b"PK\x03\x04 a zip file".to_vec(),
        b"\x93NUM".to_vec(),
        b"\x93NUMPY\x09\x00\x00\x00".to_vec(),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec(),
        dictionary(""),
        dictionary("{'descr': '<f4', 'shape': (1, 1)}"),
        dictionary("{'descr': '<f4', 'fortran_order': 1, 'shape': (1, 1)}"),
        dictionary("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1, 1)}"),
        dictionary("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 1)}"),
        dictionary("{'descr': 'f', 'fortran_order': False, 'shape': (1, 1)}"),
        dictionary("{'descr"),
        dictionary(&nested),
    ] {
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(read_floats("m", &path), Err(NpyError::Format { .. })), "{bytes:?}");
    }
}

#[test]
fn a_float64_that_float32_cannot_hold_is_refused_and_infinity_is_not() {
    let folder = folder();
    let path = folder.path().join("m.npy");
    write_npy(&path, &Array2::from_shape_vec((1, 2), vec![f64::INFINITY, 1.0]).unwrap()).unwrap();
    assert_eq!(read_floats("m", &path).unwrap().values[0], f32::INFINITY);
    write_npy(&path, &Array2::from_shape_vec((1, 2), vec![1.0, 1e300]).unwrap()).unwrap();
    let refused = read_floats("m", &path).unwrap_err().to_string();
    assert!(refused.contains("[0, 1]") && refused.contains("1000"), "{refused}");
}

#[test]
fn flags_other_than_zero_and_one_are_refused() {
    let folder = folder();
    let path = folder.path().join("y.npy");
    write_npy(&path, &Array2::from_shape_vec((1, 3), vec![0u8, 1, 2]).unwrap()).unwrap();
    let refused = read_flags("answers", &path).unwrap_err().to_string();
    assert!(refused.contains("[0, 2]") && refused.contains("the value 2"), "{refused}");
    write_npy(&path, &Array2::from_shape_vec((1, 2), vec![true, false]).unwrap()).unwrap();
    assert_eq!(read_flags("answers", &path).unwrap().values, [1, 0]);
}

#[test]
fn the_wrong_type_or_number_of_dimensions_is_named() {
    let folder = folder();
    let path = folder.path().join("m.npy");
    write_npy(&path, &Array1::from(vec![1.0f32])).unwrap();
    assert!(matches!(read_floats("m", &path), Err(NpyError::Dimensions { actual: 1, .. })));
    assert!(read_integers("ids", &path).unwrap_err().to_string().contains("float32"));
    std::fs::write(&path, "").unwrap();
    assert!(matches!(read_floats("m", &path), Err(NpyError::Empty { .. })));
    assert!(matches!(read_floats("m", folder.path()), Err(NpyError::Unreadable { .. })));
}
