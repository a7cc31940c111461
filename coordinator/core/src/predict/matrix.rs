//! Symmetric positive definite matrices: factor, inverse, product.

/// A square matrix by rows.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    pub size: usize,
    pub values: Vec<f64>,
}

impl Matrix {
    /// From its lower half.
    pub fn symmetric(size: usize, value: impl Fn(usize, usize) -> f64) -> Self {
        let mut matrix = Matrix { size, values: vec![0.0; size * size] };
        for row in 0..size {
            for column in 0..=row {
                let value = value(row, column);
                matrix.values[row * size + column] = value;
                matrix.values[column * size + row] = value;
            }
        }
        matrix
    }

    pub fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.size..(row + 1) * self.size]
    }

    pub fn at(&self, row: usize, column: usize) -> f64 {
        self.values[row * self.size + column]
    }

    pub fn times(&self, vector: &[f64]) -> Vec<f64> {
        (0..self.size).map(|row| dot(self.row(row), vector)).collect()
    }

    /// The rows and columns of some indices.
    pub fn part(&self, indices: &[usize]) -> Matrix {
        Matrix::symmetric(indices.len(), |row, column| self.at(indices[row], indices[column]))
    }

    /// The inverse, by Cholesky's factors; none where the matrix is not positive definite to working precision.
    pub fn inverse(&self) -> Option<Matrix> {
        let size = self.size;
        let mut factor = vec![0.0; size * size];
        for row in 0..size {
            for column in 0..=row {
                let (above, below) = factor.split_at_mut(row * size);
                let sum = if column == row {
                    dot(&below[..column], &below[..column])
                } else {
                    dot(&below[..column], &above[column * size..column * size + column])
                };
                let rest = self.at(row, column) - sum;
                below[column] = if column < row {
                    rest / above[column * size + column]
                } else if rest > 0.0 {
                    rest.sqrt()
                } else {
                    return None;
                };
            }
        }
        // The rows of this are the columns of the factor's inverse, so that both loops run along rows.
        let mut columns = vec![0.0; size * size];
        for column in 0..size {
            let inverse = &mut columns[column * size..(column + 1) * size];
            inverse[column] = 1.0 / factor[column * size + column];
            for row in column + 1..size {
                let sum = dot(&factor[row * size + column..row * size + row], &inverse[column..row]);
                inverse[row] = -sum / factor[row * size + row];
            }
        }
        let product = |row: usize, column: usize| {
            let from = row.max(column);
            dot(&columns[row * size + from..(row + 1) * size], &columns[column * size + from..(column + 1) * size])
        };
        Some(Matrix::symmetric(size, product))
    }
}

/// Sums kept apart, so that the processor can work on all at once.
const LANES: usize = 8;

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; LANES];
    let (a_lanes, b_lanes) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 = a_lanes.remainder().iter().zip(b_lanes.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_lanes.zip(b_lanes) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    rest + sums.iter().sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inverse_times_its_matrix_is_one() {
        // A kernel of points on a line, as the model has them, with noise on the diagonal.
        let matrix = Matrix::symmetric(40, |row, column| {
            let apart = (row as f64 - column as f64) / 7.0;
            (-apart * apart).exp() + if row == column { 0.01 } else { 0.0 }
        });
        let inverse = matrix.inverse().expect("positive definite");
        for row in 0..40 {
            let product = inverse.times(matrix.row(row));
            for (column, value) in product.iter().enumerate() {
                let expected = f64::from(u8::from(row == column));
                assert!((value - expected).abs() < 1e-9, "[{row}][{column}] = {value}");
            }
        }
    }

    #[test]
    fn what_is_not_positive_definite_has_no_inverse() {
        assert!(Matrix::symmetric(3, |_, _| 1.0).inverse().is_none());
        assert!(Matrix::symmetric(2, |_, _| f64::NAN).inverse().is_none());
    }
}
