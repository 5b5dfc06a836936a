-- promise: The scores of rows and those of parameters have one sum, as far as the model's numbers are exact.
SELECT format('rows sum to {:.6g}, recorded are {:.6g} of rows and {:.6g} of parameters', rows, recorded, parameters)
FROM law WHERE abs(rows - recorded) > 1e-6 * size OR abs(recorded - parameters) > 0.1 * size
