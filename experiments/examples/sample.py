import pds

model = pds.load("asset:mnist_ncsnpp")
sampler = pds.PredictorCorrector(50, pds.ReverseDiffusion(), corrector=None)
vanilla = pds.sample(model, sampler, images=16, seed=0)
faster = pds.sample(model, sampler, filter=pds.StatisticsFilter(2.5), images=16, seed=0)
pds.grid(vanilla.images, faster.images).save("pds.png")
