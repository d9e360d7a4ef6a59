"""What a person looks at while a run trains: maps and classes as pictures."""
