use std::{path::Path, sync::OnceLock};

use half::bf16;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use thicket_onednn::{Activation, DenseProduct, Error, Keep, Library, Missing, PackedLinear, TiledLinear};

/// The system's library, and one of another version that `THICKET_TEST_ONEDNN_OTHER` names; none on a machine that may do
/// without.
fn libraries() -> &'static [&'static Library] {
    static FOUND: OnceLock<Vec<&'static Library>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let mut found = Vec::new();
        match Library::get() {
            Ok(library) => found.push(library),
            Err(missing) => {
                let required =
                    std::env::var_os("THICKET_TEST_ONEDNN").is_some_and(|value| value == "required");
                assert!(!required, "{missing}");
                eprintln!("not checked: {missing}");
            }
        }
        if let Some(other) = std::env::var_os("THICKET_TEST_ONEDNN_OTHER") {
            let library = Library::open(&[Path::new(&other)]).unwrap_or_else(|missing| panic!("{missing}"));
            found.push(Box::leak(Box::new(library)));
        }
        found
    })
}

/// Those with a fast product in bf16 on this processor.
fn bf16_libraries() -> impl Iterator<Item = &'static Library> {
    libraries().iter().copied().filter(|library| {
        library.check_bf16().inspect_err(|missing| eprintln!("not checked: {missing}")).is_ok()
    })
}

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut random = SmallRng::seed_from_u64(seed);
    (0..count).map(|_| random.random_range(-1.0..1.0)).collect()
}

fn activated(x: f64, activation: Activation) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match activation {
        Activation::None => x,
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Silu => x * sigmoid(x),
    }
}

#[test]
fn every_activation_with_and_without_bias_and_residual_equals_f64() {
    for library in libraries() {
        for (case, (rows, input, output)) in
            [(1, 1, 1), (1, 300, 70), (65, 33, 600), (130, 128, 17), (64, 64, 512)].into_iter().enumerate()
        {
            let seed = case as u64;
            let x = random(rows * input, seed);
            let scale = 1.0 / (input as f32).sqrt();
            let weight: Vec<f32> =
                random(output * input, seed + 10).iter().map(|value| value * scale).collect();
            let (bias, residual) = (random(output, seed + 20), random(rows * output, seed + 30));
            for bias in [None, Some(bias.as_slice())] {
                let map = PackedLinear::new(library, &weight, bias, output, input).unwrap();
                for activation in Activation::ALL {
                    for residual in [None, Some(residual.as_slice())] {
                        let y = map.forward(&x, activation, residual).unwrap();
                        for (place, actual) in y.iter().enumerate() {
                            let (row, column) = (place / output, place % output);
                            let product: f64 = x[row * input..][..input]
                                .iter()
                                .zip(&weight[column * input..][..input])
                                .map(|(x, w)| f64::from(*x) * f64::from(*w))
                                .sum();
                            let product = product + bias.map_or(0.0, |bias| f64::from(bias[column]));
                            let expected = activated(product, activation)
                                + residual.map_or(0.0, |residual| f64::from(residual[place]));
                            let error = (f64::from(*actual) - expected).abs();
                            assert!(error < 1e-5, "{activation:?}: {actual} for {expected} at {place}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_companions_or_its_place() {
    for library in libraries() {
        for (input, output) in [(768, 530), (3072, 70), (50, 9)] {
            let (rows, weight) = (200, random(output * input, 1));
            let map = PackedLinear::new(library, &weight, None, output, input).unwrap();
            let x = random(rows * input, 2);
            let product = |first: usize, count: usize| -> Vec<f32> {
                map.forward(&x[first * input..][..count * input], Activation::None, None).unwrap()
            };
            let together = product(0, rows);
            for (first, count) in [(0, 1), (3, 1), (199, 1), (5, 2), (17, 63), (1, 64), (7, 65), (60, 140)] {
                assert_eq!(
                    product(first, count),
                    together[first * output..][..count * output],
                    "{first} {count}"
                );
            }
        }
    }
}

/// Rounds to bf16 and back, so that products of the values are exact in f32.
fn rounded(values: Vec<f32>) -> (Vec<bf16>, Vec<f32>) {
    let narrow: Vec<bf16> = values.into_iter().map(bf16::from_f32).collect();
    let wide = narrow.iter().map(|value| value.to_f32()).collect();
    (narrow, wide)
}

#[test]
fn a_product_in_bf16_of_any_height_equals_f64() {
    for library in bf16_libraries() {
        for (input, output) in [(64, 700), (300, 70), (33, 1), (768, 512)] {
            let scale = 1.0 / (input as f32).sqrt();
            let (weight, wide) =
                rounded(random(output * input, 1).iter().map(|value| value * scale).collect());
            let bias = random(output, 2);
            let map = PackedLinear::new(library, &weight, Some(&bias), output, input).unwrap();
            for rows in [1, 2, 9, 31, 77, 128, 197, 600] {
                let ((x, wide_x), residual) = (rounded(random(rows * input, 3)), random(rows * output, 4));
                let product = |place: usize| -> f64 {
                    let (row, column) = (place / output, place % output);
                    let pairs = wide_x[row * input..][..input].iter().zip(&wide[column * input..][..input]);
                    pairs.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>() + f64::from(bias[column])
                };
                let sums = map.forward(&x, Activation::None, Some(&residual)).unwrap();
                for (place, actual) in sums.iter().enumerate() {
                    let expected = product(place) + f64::from(residual[place]);
                    assert!(
                        (f64::from(*actual) - expected).abs() < 1e-4,
                        "{actual} for {expected} at {place}"
                    );
                }
                let narrow: Vec<bf16> = map.forward(&x, Activation::QuickGelu, None).unwrap();
                for (place, actual) in narrow.iter().enumerate() {
                    let expected = activated(product(place), Activation::QuickGelu);
                    // Half a step of bf16, and what the library's activation is off by.
                    let tolerance = expected.abs() / 256.0 + 2e-3;
                    assert!(
                        (actual.to_f64() - expected).abs() < tolerance,
                        "{actual} for {expected} at {place}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_product_of_two_matrices_equals_f64() {
    for library in bf16_libraries() {
        for (rows, inner, columns) in [(1, 1, 1), (197, 64, 208), (32, 96, 64), (5, 33, 7)] {
            let ((a, wide_a), (b, wide_b)) =
                (rounded(random(rows * inner, 1)), rounded(random(inner * columns, 2)));
            for transposed in [false, true] {
                let product = DenseProduct::new(library, rows, inner, columns, transposed).unwrap();
                let mut c = vec![f32::NAN; rows * columns];
                product.run(&a, &b, &mut c).unwrap();
                for (place, actual) in c.iter().enumerate() {
                    let (row, column) = (place / columns, place % columns);
                    let other = |k: usize| if transposed { column * inner + k } else { k * columns + column };
                    let expected: f64 = (0..inner)
                        .map(|k| f64::from(wide_a[row * inner + k]) * f64::from(wide_b[other(k)]))
                        .sum();
                    assert!(
                        (f64::from(*actual) - expected).abs() < 1e-4,
                        "{actual} for {expected} at {place}"
                    );
                }
                let error = product.run(&a, &b[1..], &mut c).unwrap_err();
                assert_eq!(error, Error::Length { what: "b", expected: b.len(), actual: b.len() - 1 });
            }
        }
    }
}

#[test]
fn many_threads_may_use_one_map() {
    for library in libraries() {
        let (input, output) = (96, 700);
        let map = PackedLinear::new(library, &random(output * input, 1), None, output, input).unwrap();
        let x = random(150 * input, 2);
        let product = || -> Vec<f32> { map.forward(&x, Activation::QuickGelu, None).unwrap() };
        let expected = product();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(product)).collect();
            for thread in threads {
                assert_eq!(thread.join().unwrap(), expected);
            }
        });
    }
}

#[test]
fn slices_that_do_not_fit_are_refused_by_name_and_length() {
    for library in libraries() {
        let error = PackedLinear::new(library, &[0f32; 7], None, 2, 4).unwrap_err();
        assert_eq!(error, Error::Length { what: "weight", expected: 8, actual: 7 });
        let map = PackedLinear::new(library, &[0f32; 8], None, 2, 4).unwrap();
        let error = map.forward::<f32>(&[0f32; 6], Activation::None, None).unwrap_err();
        assert_eq!(error, Error::Length { what: "x", expected: 4, actual: 6 });
        let error = map.forward(&[0f32; 4], Activation::None, Some(&[0f32; 1])).unwrap_err();
        assert_eq!(error, Error::Length { what: "residual", expected: 2, actual: 1 });
        assert_eq!(
            PackedLinear::<f32>::new(library, &[], None, 0, 4).unwrap_err(),
            Error::Size { input: 4, output: 0 }
        );
    }
}

#[test]
fn bf16_is_offered_only_with_code_made_for_it() {
    for library in libraries() {
        match library.check_bf16() {
            Ok(()) => assert!(library.has_avx512(), "{library:?}"),
            Err(missing) => assert!(matches!(missing, Missing::Bf16 { .. }), "{missing}"),
        }
    }
}

#[test]
fn a_tiled_weight_of_any_number_of_rows_equals_f64() {
    let shapes = [
        (1, 32, 1, Activation::None),
        (1, 1536, 300, Activation::Silu),
        (3, 96, 70, Activation::QuickGelu),
        (17, 1600, 130, Activation::None),
        (32, 64, 64, Activation::None),
        (33, 800, 90, Activation::Silu),
        (300, 1568, 330, Activation::None),
        (600, 768, 700, Activation::None),
    ];
    for ((rows, input, output, activation), keep) in
        shapes.into_iter().flat_map(|shape| [Keep::Whole, Keep::Compact].map(|keep| (shape, keep)))
    {
        let (x, wide_x) = rounded(random(rows * input, 1));
        let scale = 1.0 / (input as f32).sqrt();
        let (weight, wide) = rounded(random(output * input, 2).iter().map(|value| value * scale).collect());
        let (bias, residual) = (random(output, 3), random(rows * output, 4));
        let Some(map) = TiledLinear::new(&weight, Some(&bias), output, input, keep).unwrap() else {
            eprintln!("not checked: no AMX");
            return;
        };
        let y = map.forward(&x, activation, Some(residual.as_slice())).unwrap();
        for (place, actual) in y.iter().enumerate() {
            let (row, column) = (place / output, place % output);
            let sum: f64 = wide_x[row * input..][..input]
                .iter()
                .zip(&wide[column * input..][..input])
                .map(|(x, w)| f64::from(*x) * f64::from(*w))
                .sum();
            let expected = activated(sum + f64::from(bias[column]), activation) + f64::from(residual[place]);
            let error = (f64::from(*actual) - expected).abs();
            assert!(error < 1e-4, "{rows} x {input} x {output}: {actual} for {expected} at {place}");
        }
        assert_eq!(map.row(output - 1).unwrap(), weight[(output - 1) * input..]);
        assert_eq!(map.row(output), None);
    }
}

#[test]
fn two_maps_at_once_are_one_after_the_other_to_the_bit() {
    for (rows, input, between, output, keep) in [
        (1, 64, 96, 40, Keep::Compact),
        (32, 64, 96, 40, Keep::Whole),
        (33, 64, 96, 40, Keep::Whole),
        (300, 96, 1312, 70, Keep::Compact),
        (700, 256, 1024, 256, Keep::Whole),
    ] {
        let made = |output, input, seed| {
            let (weight, _) = rounded(random(output * input, seed));
            TiledLinear::new(&weight, Some(&random(output, seed + 1)), output, input, keep).unwrap()
        };
        let (Some(first), Some(next)) = (made(between, input, 1), made(output, between, 3)) else {
            eprintln!("not checked: no AMX");
            return;
        };
        let ((x, _), residual) = (rounded(random(rows * input, 5)), random(rows * output, 6));
        for activation in Activation::ALL {
            let hidden: Vec<bf16> = first.forward(&x, activation, None).unwrap();
            let expected = next.forward(&hidden, Activation::None, Some(residual.as_slice())).unwrap();
            let actual = first.forward_through(&x, activation, &next, Some(residual.as_slice())).unwrap();
            assert!(actual == expected, "{rows} rows by {input}, {between} and {output}");
        }
        let error = first.forward_through::<f32>(&x, Activation::None, &first, None).unwrap_err();
        assert!(error.to_string().contains("inputs of the next map"), "{error}");
    }
}
