"""The teachers' tokenizers, the students' registered ones, and each pair of the two."""
