import pds

model = pds.load("asset:mnist_ncsnpp")
walk = pds.PreconditionedSDE(20, weight="exact", rho=7, eta=2, slope=1.4, start=5, end=0.08)
samples = pds.sample(pds.level_shift(model, scale=1.7), walk, images=16)
pds.grid(samples.images).save("walk.png")
