//! `--input NAME=JSON` as a tensor.

use std::str::FromStr;

use anyhow::{Context, Result, bail};
use millrace_common::fleet::TensorSpec;
use millrace_common::protocol::elements;
use millrace_producer::{Datatype, Tensor};
use serde_json::Value;

/// An input as given: `NAME=JSON` or `NAME:DATATYPE=JSON`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Input {
    /// The model's name for it.
    pub(crate) name: String,
    /// Where given; else the fleet knows it.
    pub(crate) datatype: Option<Datatype>,
    json: String,
}

impl FromStr for Input {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, json) = text
            .split_once('=')
            .ok_or("write NAME=JSON or NAME:DATATYPE=JSON, as image=[[0,1]] or x:INT64=[7]")?;
        // A name may itself hold a colon, as TensorFlow's do.
        let (name, datatype) = match name.rsplit_once(':') {
            Some((name, datatype)) if datatype.parse::<Datatype>().is_ok() => (name, datatype.parse().ok()),
            Some((name, datatype))
                if Datatype::ALL.iter().any(|known| known.as_str().eq_ignore_ascii_case(datatype)) =>
            {
                return Err(format!("datatypes are in capitals: {name}:{}", datatype.to_ascii_uppercase()));
            }
            _ => (name, None),
        };
        if name.is_empty() {
            return Err("the input has no name: write NAME=JSON".to_owned());
        }
        serde_json::from_str::<serde::de::IgnoredAny>(json).map_err(|error| {
            format!("`{name}` is not JSON ({error}); text needs quotes: {name}=[\"text\"]")
        })?;
        Ok(Self { name: name.to_owned(), datatype, json: json.to_owned() })
    }
}

impl Input {
    /// The tensor. `spec` is the model's input of this name, where the fleet was asked.
    pub(crate) fn tensor(&self, spec: Option<&TensorSpec>) -> Result<Tensor> {
        let name = &self.name;
        let datatype = match (self.datatype, spec.map(|spec| spec.datatype)) {
            (Some(datatype), _) | (None, Some(Some(datatype))) => datatype,
            (None, Some(None)) => bail!("input `{name}` has a type that requests cannot carry"),
            (None, None) => bail!("the datatype of `{name}` is not known: give it as {name}:FP32=..."),
        };
        let value: Value = serde_json::from_str(&self.json)?;
        let nested = nested_shape(&value);
        let shape = spec.and_then(|spec| shape_of_flat(&nested, &spec.shape)).unwrap_or(nested);
        let data =
            elements::parse(&self.json, datatype, &shape).with_context(|| format!("input `{name}`"))?;
        Ok(Tensor::new(name, datatype, shape, data.into())?)
    }
}

/// The shape that the nesting shows, by the first element of each level; whether the others agree is seen when parsing.
fn nested_shape(value: &Value) -> Vec<i64> {
    let mut shape = Vec::new();
    let mut level = value;
    while let Value::Array(items) = level {
        shape.push(i64::try_from(items.len()).unwrap_or(i64::MAX));
        match items.first() {
            Some(first) => level = first,
            None => break,
        }
    }
    shape
}

/// A flat list stands for the model's shape, where that follows: at most one open dimension, and the count fits.
fn shape_of_flat(nested: &[i64], wanted: &[i64]) -> Option<Vec<i64>> {
    let &[count] = nested else { return None };
    if wanted.len() == 1 {
        return None;
    }
    let known: i64 =
        wanted.iter().filter(|&&size| size >= 0).try_fold(1i64, |all, &size| all.checked_mul(size))?;
    let open = wanted.iter().filter(|&&size| size < 0).count();
    let fill = match open {
        0 if known == count => 1,
        1 if known > 0 && count % known == 0 => count / known,
        _ => return None,
    };
    Some(wanted.iter().map(|&size| if size < 0 { fill } else { size }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Input, String> {
        text.parse()
    }

    fn tensor(text: &str, datatype: Datatype, shape: &[i64]) -> Result<Tensor> {
        let spec = TensorSpec { name: "x".into(), datatype: Some(datatype), shape: shape.to_vec() };
        parse(text).unwrap().tensor(Some(&spec))
    }

    #[test]
    fn names_and_datatypes_are_told_apart() {
        let input = parse("x:FP16=[1,2]").unwrap();
        assert_eq!((input.name.as_str(), input.datatype), ("x", Some(Datatype::Fp16)));
        let input = parse("serving_x:0=[1]").unwrap();
        assert_eq!((input.name.as_str(), input.datatype), ("serving_x:0", None));
        let input = parse("t=[\"a=b\"]").unwrap();
        assert_eq!(input.json, "[\"a=b\"]");
        for (bad, hint) in [
            ("x", "NAME=JSON"),
            ("=[1]", "no name"),
            ("x=hello", "quotes"),
            ("x:fp32=[1]", "x:FP32"),
            ("x=[1", "JSON"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(hint), "{bad}: {error}");
        }
    }

    #[test]
    fn shapes_follow_from_nesting_or_from_the_model() {
        for (text, wanted, shape) in [
            ("x=[[1,2],[3,4],[5,6]]", &[-1, 2][..], &[3, 2][..]),
            ("x=[1,2,3,4]", &[-1, 2], &[2, 2]),
            ("x=[1,2,3,4]", &[-1], &[4]),
            ("x=[1,2,3,4]", &[2, 2], &[2, 2]),
            ("x=[1,2,3,4]", &[-1, -1], &[4]),
            ("x=[1,2,3]", &[-1, 2], &[3]),
            ("x=7", &[], &[]),
            ("x=[]", &[-1, 2], &[0, 2]),
        ] {
            assert_eq!(tensor(text, Datatype::Fp32, wanted).unwrap().shape, shape, "{text} {wanted:?}");
        }
        assert!(tensor("x=[[1,2],[3]]", Datatype::Fp32, &[-1, 2]).is_err());
        assert!(tensor("x=[300]", Datatype::Uint8, &[-1]).is_err());
        assert_eq!(tensor("x=[\"é\"]", Datatype::Bytes, &[-1]).unwrap().data, b"\x02\0\0\0\xc3\xa9"[..]);
        let error = parse("x=[1]").unwrap().tensor(None).unwrap_err().to_string();
        assert!(error.contains("x:FP32="), "{error}");
    }
}
