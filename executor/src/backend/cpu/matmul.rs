//! Matrix products over strided views, by `matrixmultiply`'s `sgemm`.
//!
//! The only `unsafe` of the model is the call into it: a view asserts when it is made that all of its elements lie in
//! its slice, and a product asserts that the sizes agree.

/// A matrix in a slice, read only.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> View<'a> {
    /// All of a row-major slice, with as many rows as it holds.
    pub(super) fn of(data: &'a [f32], columns: usize) -> View<'a> {
        let rows = data.len() / columns;
        assert_eq!(rows * columns, data.len(), "whole rows of {columns}");
        View { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// `count` columns of a row-major slice whose rows have `stride` elements, from column `first` on.
    pub(super) fn columns_of(data: &'a [f32], stride: usize, first: usize, count: usize) -> View<'a> {
        let rows = assert_columns(data.len(), stride, first, count);
        View { data: &data[first..], rows, columns: count, row_stride: stride, column_stride: 1 }
    }

    /// Rows as columns; nothing moves.
    pub(super) fn transposed(self) -> View<'a> {
        View {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// A matrix in a slice, to write to. Its columns are adjacent, so no two elements are one.
#[derive(Debug)]
pub(super) struct ViewMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
}

impl<'a> ViewMut<'a> {
    /// As [`View::of`].
    pub(super) fn of(data: &'a mut [f32], columns: usize) -> ViewMut<'a> {
        let rows = data.len() / columns;
        assert_eq!(rows * columns, data.len(), "whole rows of {columns}");
        ViewMut { data, rows, columns, row_stride: columns }
    }

    /// As [`View::columns_of`].
    pub(super) fn columns_of(data: &'a mut [f32], stride: usize, first: usize, count: usize) -> ViewMut<'a> {
        let rows = assert_columns(data.len(), stride, first, count);
        ViewMut { data: &mut data[first..], rows, columns: count, row_stride: stride }
    }
}

/// Number of rows of `stride` in `length` elements, all of which have columns `first..first + count`.
fn assert_columns(length: usize, stride: usize, first: usize, count: usize) -> usize {
    let rows = length / stride;
    assert!(rows > 0 && rows * stride == length, "whole rows of {stride}");
    assert!(first + count <= stride, "columns {first} to {} lie within rows of {stride}", first + count);
    rows
}

/// `left * right`, row-major.
pub(super) fn product(left: View<'_>, right: View<'_>) -> Vec<f32> {
    let mut output = vec![0.0; left.rows * right.columns];
    multiply(left, right, ViewMut::of(&mut output, right.columns));
    output
}

/// `output = left * right`.
pub(super) fn multiply(left: View<'_>, right: View<'_>, output: ViewMut<'_>) {
    gemm(left, right, 0.0, output);
}

/// `output += left * right`.
pub(super) fn multiply_add(left: View<'_>, right: View<'_>, output: ViewMut<'_>) {
    gemm(left, right, 1.0, output);
}

fn gemm(left: View<'_>, right: View<'_>, keep: f32, output: ViewMut<'_>) {
    assert_eq!(left.columns, right.rows, "inner sizes agree");
    assert_eq!((left.rows, right.columns), (output.rows, output.columns), "outer sizes agree");
    // SAFETY: each view's constructor asserted that rows x columns at its strides lie within its slice. `output` is
    // borrowed exclusively, so it aliases neither input, and its columns are adjacent with a row stride of at least
    // their count, so none of its elements alias. A stride is at most a slice's length, which fits in isize.
    unsafe {
        matrixmultiply::sgemm(
            left.rows,
            left.columns,
            right.columns,
            1.0,
            left.data.as_ptr(),
            left.row_stride as isize,
            left.column_stride as isize,
            right.data.as_ptr(),
            right.row_stride as isize,
            right.column_stride as isize,
            keep,
            output.data.as_mut_ptr(),
            output.row_stride as isize,
            1,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, columns: usize) -> Vec<f32> {
        (0..rows * columns).map(|i| ((i * 7 + 3) % 11) as f32 - 5.0).collect()
    }

    #[test]
    fn strides_and_transposition_match_the_definition() {
        let (m, k, n) = (5, 4, 3);
        let (wide, right) = (matrix(m, k + 6), matrix(n, k));
        let mut output = vec![1.0; m * (n + 2)];
        let left = View::columns_of(&wide, k + 6, 2, k);
        multiply_add(left, View::of(&right, k).transposed(), ViewMut::columns_of(&mut output, n + 2, 1, n));
        for row in 0..m {
            assert_eq!((output[row * (n + 2)], output[row * (n + 2) + n + 1]), (1.0, 1.0), "the margin is untouched");
            for column in 0..n {
                let expected: f32 = (0..k).map(|i| wide[row * (k + 6) + 2 + i] * right[column * k + i]).sum();
                assert_eq!(output[row * (n + 2) + 1 + column], 1.0 + expected);
            }
        }
    }

    #[test]
    #[should_panic(expected = "inner sizes agree")]
    fn unequal_inner_sizes_panic() {
        product(View::of(&[1.0, 2.0], 2), View::of(&[1.0, 2.0, 3.0], 1));
    }

    #[test]
    #[should_panic(expected = "lie within rows")]
    fn columns_outside_the_rows_panic() {
        View::columns_of(&[1.0, 2.0], 2, 1, 2);
    }
}
