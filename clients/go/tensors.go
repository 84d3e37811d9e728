package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"strconv"
)

// Tensor holds FP32 numbers in row-major order.
type Tensor struct {
	Shape   []int64
	numbers []float32
}

// ParseTensor reads nested JSON arrays of numbers.
func ParseTensor(text []byte) (*Tensor, error) {
	var nested interface{}
	if err := json.Unmarshal(text, &nested); err != nil {
		return nil, err
	}
	tensor := &Tensor{}
	return tensor, tensor.add(nested, 0)
}

// add appends a value found at a depth of nesting. The first array at each depth sets its size.
func (t *Tensor) add(value interface{}, depth int) error {
	switch value := value.(type) {
	case float64:
		if depth == len(t.Shape) {
			t.numbers = append(t.numbers, float32(value))
			return nil
		}
	case []interface{}:
		if depth == len(t.Shape) && len(t.numbers) == 0 {
			t.Shape = append(t.Shape, int64(len(value)))
		}
		if depth < len(t.Shape) && int64(len(value)) == t.Shape[depth] {
			for _, element := range value {
				if err := t.add(element, depth+1); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return errors.New("not numbers in nested arrays of equal lengths")
}

// Raw is the tensor as it travels.
func (t *Tensor) Raw() []byte {
	raw := make([]byte, 4*len(t.numbers))
	for index, number := range t.numbers {
		little.PutUint32(raw[4*index:], math.Float32bits(number))
	}
	return raw
}

var little = binary.LittleEndian

// readers tells how many bytes an element takes, and reads one.
var readers = map[string]struct {
	size int
	read func(raw []byte) interface{}
}{
	"BOOL":   {1, func(raw []byte) interface{} { return raw[0] != 0 }},
	"UINT8":  {1, func(raw []byte) interface{} { return raw[0] }},
	"UINT16": {2, func(raw []byte) interface{} { return little.Uint16(raw) }},
	"UINT32": {4, func(raw []byte) interface{} { return little.Uint32(raw) }},
	"UINT64": {8, func(raw []byte) interface{} { return little.Uint64(raw) }},
	"INT8":   {1, func(raw []byte) interface{} { return int8(raw[0]) }},
	"INT16":  {2, func(raw []byte) interface{} { return int16(little.Uint16(raw)) }},
	"INT32":  {4, func(raw []byte) interface{} { return int32(little.Uint32(raw)) }},
	"INT64":  {8, func(raw []byte) interface{} { return int64(little.Uint64(raw)) }},
	"FP32":   {4, func(raw []byte) interface{} { return float(float64(math.Float32frombits(little.Uint32(raw))), 32) }},
	"FP64":   {8, func(raw []byte) interface{} { return float(math.Float64frombits(little.Uint64(raw)), 64) }},
}

// float has all of a number's digits and no more. JSON has no NaN and no infinities: those become text.
func float(number float64, bits int) interface{} {
	text := strconv.FormatFloat(number, 'g', -1, bits)
	if math.IsNaN(number) || math.IsInf(number, 0) {
		return text
	}
	return json.Number(text)
}

// elements reads a tensor's raw contents; nil for a datatype that is no number in Go.
func elements(datatype string, raw []byte) []interface{} {
	reader, known := readers[datatype]
	if !known {
		return nil
	}
	values := make([]interface{}, len(raw)/reader.size)
	for index := range values {
		values[index] = reader.read(raw[index*reader.size:])
	}
	return values
}
